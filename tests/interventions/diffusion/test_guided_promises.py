"""Promises of guidance methods beside those of all methods (test_promises.py)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from methods import METHODS
from tiny_pipelines import FAMILIES, state, tiny

import regaze

DIFFERENT = ("sd", "sd35", "flux", "animatediff")
"""Families that differ in how attention is reached and how branches are called."""


@pytest.mark.parametrize("family", DIFFERENT)
def test_they_come_off_in_any_order_and_others_stay(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    seen: list[int] = []
    mine = denoiser.register_forward_hook(lambda m, a, o: seen.append(1))
    plain, before = kind.run(pipe), state(denoiser)
    calls = len(seen)
    pag, soft = METHODS["pag"].on(family), METHODS["softpag-heads"].on(family)
    with regaze.attach(pipe, soft):
        alone = kind.run(pipe)
    first = regaze.attach(pipe, pag)
    second = regaze.attach(pipe, soft)
    together = kind.run(pipe)
    first.detach()
    assert torch.equal(kind.run(pipe), alone)
    assert not torch.equal(together, alone)
    second.detach()
    second.detach()
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)
    mine.remove()
    # Once a pass of the pipeline's own; perturbed passes are none of others' business.
    assert len(seen) == 5 * calls


@pytest.mark.parametrize("family", DIFFERENT)
def test_nothing_stays_after_an_exception(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    denoiser = getattr(pipe, kind.denoiser)
    plain, before = kind.run(pipe), state(denoiser)
    spec = METHODS["pag"].on(family)
    with regaze.attach(pipe, spec) as run:
        target = denoiser.get_submodule(run.specs[0].layers[0])  # type: ignore[attr-defined]
        stock, count = target.processor, [0]

        def fails(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == fails_at:
                raise KeyError("out of memory, say")
            return stock(*args, **kwargs)

        for fails_at in (1, 2):  # noqa: B007 (read by the closure). In the main branch, in the perturbed one.
            count[0] = 0
            object.__setattr__(target, "processor", fails)
            with pytest.raises(KeyError):
                kind.run(pipe)
            target.processor = stock
        kind.run(pipe)
    assert state(denoiser) == before
    assert torch.equal(kind.run(pipe), plain)


def test_a_run_in_which_nothing_happened_has_not_fired() -> None:
    pipe = tiny("sd")
    with regaze.attach(pipe, regaze.PAG()) as run:
        pass
    assert not run.report().fired
    assert "NEVER FIRED" in str(run.report())


def test_several_images_of_a_prompt() -> None:
    pipe, kind = tiny("sd"), FAMILIES["sd"]
    call = kind.call(1, True)
    call["latents"] = kind.call(2, True)["latents"]
    with regaze.attach(pipe, regaze.PAG()):
        (both,) = pipe(**call, num_images_per_prompt=2)[:1]
        call["latents"] = call["latents"][1:]
        (second,) = pipe(**call)[:1]
    assert (both[1:] - second).abs().max() < 1e-5 * both.abs().max()


@pytest.mark.parametrize("family", DIFFERENT)
def test_guidances_add_up(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    specs = [METHODS["pag"].on(family), METHODS["softpag-query-mean"].on(family)]
    steps: dict[str, Any] = {"num_inference_steps": 1}
    plain = kind.run(pipe, **steps)
    moved = []
    for spec in specs:
        with regaze.attach(pipe, spec):
            moved.append(kind.run(pipe, **steps) - plain)
    with regaze.attach(pipe, *specs) as run:
        together = kind.run(pipe, **steps) - plain
    assert (together - sum(moved)).abs().max() < 1e-5 * plain.abs().max()
    assert run.report().fired


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fork_equals_a_whole_extra_pass(family: str) -> None:
    pipe, kind = tiny(family), FAMILIES[family]
    specs = [METHODS[name].on(family) for name in ("pag", "softpag-heads")]
    with regaze.attach(pipe, *specs):
        forked = kind.run(pipe)
    with regaze.attach(pipe, *specs, fork=False):
        whole = kind.run(pipe)
    assert (forked - whole).abs().max() < 1e-5 * whole.abs().max()


def test_two_pipelines_and_a_deep_copy_do_not_see_each_other() -> None:
    kind = FAMILIES["sd"]
    one, other = tiny("sd"), kind.build()
    plain = kind.run(one)
    with regaze.attach(one, regaze.PAG()):
        guided = kind.run(one)
        copied = copy.deepcopy(one.unet)
        assert torch.equal(kind.run(other), plain)
        other.unet = copied
        assert torch.equal(kind.run(other), plain)
    assert not torch.equal(guided, plain)
