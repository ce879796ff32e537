"""What is taken off in the middle of a pass acts until that pass has ended."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from methods import METHODS
from tiny_pipelines import FAMILIES, quiet, state

import regaze

ONCE: dict[str, Any] = {"num_inference_steps": 1, "guided": False}


def block(pipe: Any) -> Any:
    return pipe.unet.mid_block if hasattr(pipe, "unet") else pipe.transformer.transformer_blocks[1]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in a hook", "in another thread"])
@pytest.mark.parametrize("method", ["pag", "nag", "reweight", "a_star"])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_pass_under_way_ends_as_it_began(family: str, method: str, elsewhere: bool) -> None:
    pipe, kind = quiet(FAMILIES[family].build()), FAMILIES[family]
    denoiser, spec = getattr(pipe, kind.denoiser), METHODS[method].on(family)
    plain, before = kind.run(pipe, **ONCE), state(denoiser)
    with regaze.attach(pipe, spec):
        want = kind.run(pipe, **ONCE)
    run = regaze.attach(pipe, spec)

    def detach(*_: Any) -> None:
        handle.remove()
        if elsewhere:
            thread = threading.Thread(target=run.detach)
            thread.start()
            thread.join()
        else:
            run.detach()

    handle = block(pipe).register_forward_hook(detach)
    assert torch.equal(kind.run(pipe, **ONCE), want)
    assert state(denoiser) == before
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(kind.run(pipe, **ONCE), plain)


def test_the_last_of_several_passes_leaves_nothing() -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    spec, both = METHODS["reweight"].on("sd"), threading.Barrier(3, timeout=30)
    go_on, before = threading.Event(), state(pipe.unet)
    with regaze.attach(pipe, spec):
        want = kind.run(pipe, **ONCE)
    run, got = regaze.attach(pipe, spec), []

    def hold(*_: Any) -> None:
        both.wait()
        assert go_on.wait(30)

    def paint() -> None:
        own = quiet(type(pipe)(**pipe.components, requires_safety_checker=False))
        own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        got.append(kind.run(own, **ONCE))

    handle = block(pipe).register_forward_hook(hold)
    threads = [threading.Thread(target=paint) for _ in range(2)]
    for thread in threads:
        thread.start()
    both.wait()
    run.detach()
    go_on.set()
    for thread in threads:
        thread.join()
    handle.remove()
    assert all(torch.equal(one, want) for one in got) and len(got) == 2
    assert state(pipe.unet) == before


def test_an_error_in_such_a_pass_leaves_nothing_either() -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    before = state(pipe.unet)
    run = regaze.attach(pipe, METHODS["a_star"].on("sd"))

    def fail(*_: Any) -> None:
        handle.remove()
        run.detach()
        raise KeyboardInterrupt

    handle = block(pipe).register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        kind.run(pipe, **ONCE)
    assert state(pipe.unet) == before
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert "step" not in vars(pipe.scheduler)
