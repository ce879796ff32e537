"""Two threads on one attached pipeline get what one after the other gets."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from making import move
from methods import Method, promised
from scenes import stage, steps
from tiny_pipelines import FAMILIES, quiet
from torch import Tensor

import regaze

RUNS = 4


@pytest.fixture(autouse=True)
def switching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Threads that take turns as often as they can."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@promised("threads", "sd", "flux", "pairs-flux")
def test_threads_do_not_see_each_other(scene: str, method: Method) -> None:
    pipe, kind = stage(scene)
    calls = [kind.call(kind.samples, True) | steps(method.id) for _ in range(RUNS)]
    for number, call in enumerate(calls):
        if "latents" in call:
            call["latents"] = call["latents"] * (1 + 0.1 * number)

    def paint(number: int) -> Tensor:
        # Most schedulers hold the step of one run; DDIM holds none.
        own = copy.copy(pipe)
        own.scheduler = pipe.scheduler if scene == "sd" else copy.deepcopy(pipe.scheduler)
        latents: Tensor = own(**calls[number])[0]
        return latents

    spec = method.on(scene)
    with regaze.attach(pipe, spec) as run:
        want = [paint(number) for number in range(RUNS)]
        alone = run.report().interventions[0]
        got: dict[int, Tensor] = {}

        def work(numbers: range) -> None:
            got.update({number: paint(number) for number in numbers})

        threads = [threading.Thread(target=work, args=(range(k, RUNS, 2),)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        both = run.report().interventions[0]
    assert [torch.equal(got[number], want[number]) for number in range(RUNS)] == [True] * RUNS
    assert both.fired and both.steps == 2 * (alone.steps or 0)
    assert [layer.calls for layer in both.layers] == [2 * layer.calls for layer in alone.layers]


def test_another_thread_keeps_the_backend_that_was_set() -> None:
    kind = FAMILIES["flux"]
    pipe, seen = quiet(kind.build()), []

    class Noted(FluxAttnProcessor):  # type: ignore[misc]
        """Computes by torch's kernel, whatever it is told to compute by."""

        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(self._attention_backend)
            own = FluxAttnProcessor()
            return own(attn, *args, **kwargs)

    attn = pipe.transformer.transformer_blocks[1].attn
    attn.set_processor(Noted())
    attn.processor._attention_backend = "mine"

    def paint() -> None:
        own = copy.copy(pipe)
        own.scheduler = copy.deepcopy(pipe.scheduler)
        kind.run(own)

    with regaze.attach(pipe, regaze.PAG(layers=(1,))):
        threads = [threading.Thread(target=paint) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Three steps each: both of the pipeline's own branches, and the perturbed one.
    assert sorted(seen) == ["mine"] * 12 + ["native"] * 6
    assert type(attn.processor) is Noted


def test_a_thread_that_ended_in_the_middle_of_a_step_leaves_nothing() -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    plain = kind.run(pipe)

    def fails(*_: Any) -> None:
        raise KeyError("gone")

    hook = pipe.unet.register_forward_hook(fails)
    run = regaze.attach(pipe, move(regaze.AStar, "sd"))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            kind.run(pipe)
        except KeyError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    hook.remove()
    assert errors
    run.detach()
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(kind.run(pipe), plain)
