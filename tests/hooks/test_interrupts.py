"""Whatever ends a pass, an attach or a detach, and wherever: nothing is left after detaching."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask
from matrix import EDITS, MAIN
from tiny import Tiny, tiny
from torch import Tensor
from traces import trace
from vision_maps import Raise, Spec

import regaze.hooks
from regaze.hooks import attach, capture
from regaze.hooks.dispatch import SEATS

HOME = str(Path(regaze.hooks.__file__).parent)
ALL: list[Any] = [*(EDITS[name].acts for name in MAIN), Spec(Raise("all"))]
"""One of each method, and an edit of the vision tower."""
PLACES = (
    "embed_tokens", "layers.0", "layers.1.self_attn", "layers.1.self_attn.o_proj", "layers.2.mlp",
    "norm",
)  # fmt: skip


@pytest.fixture
def model() -> Iterator[Tiny]:
    before = len(SEATS)
    yield tiny("llava", fresh=True)
    assert len(SEATS) == before


def run(model: Tiny) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.model(**ask(model, (LONG, [1]), (SHORT, [0]))).logits
    return found


def assert_untouched(model: Tiny, before: dict[str, Any], plain: Tensor) -> None:
    tower = model.model.get_decoder()
    assert trace(model.model) == before
    assert not any(module in SEATS for module in tower.modules())
    assert tower.config._attn_implementation == "sdpa"
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit]
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_pass_leaves_nothing(
    model: Tiny, place: str, when: str, error: type[BaseException]
) -> None:
    plain, before = run(model), trace(model.model)
    with attach(model.model, *ALL):
        want = run(model)
    module = model.model.get_decoder().get_submodule(place)

    def fail(*_: Any) -> None:
        raise error

    with attach(model.model, *ALL):
        hook = (
            module.register_forward_pre_hook if when == "before" else module.register_forward_hook
        )
        handle = hook(fail)
        with pytest.raises(error):
            run(model)
        handle.remove()
        assert torch.equal(run(model), want)  # and the next pass is right
        handle = hook(fail)
        with pytest.raises(error):
            model.model.generate(**ask(model, (SHORT, [0])), max_new_tokens=3)
        handle.remove()
    assert_untouched(model, before, plain)


@pytest.mark.parametrize("name", MAIN)
def test_an_interrupt_ends_the_block_and_detaches(model: Tiny, name: str) -> None:
    plain, before = run(model), trace(model.model)
    layer: Any = model.model.get_decoder().layers[1]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = layer.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt), attach(model.model, EDITS[name].acts):
        run(model)
    handle.remove()
    assert_untouched(model, before, plain)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("name", [*MAIN, "all"])
def test_interrupts_at_random_moments_leave_nothing(model: Tiny, name: str) -> None:
    plain, before = run(model), trace(model.model)
    specs = ALL if name == "all" else [EDITS[name].acts]
    inputs = ask(model, (SHORT, [0]))

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    drawn = random.Random(name)
    caught = 0
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(30):
            attached = attach(model.model, *specs)
            try:
                signal.setitimer(signal.ITIMER_REAL, drawn.uniform(1e-4, 0.03))
                model.model.generate(**inputs, max_new_tokens=8)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                caught += 1
            attached.detach()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        # Struck as it ends, the `torch.no_grad` around `generate` itself leaves gradients off.
        torch.set_grad_enabled(True)
    assert caught
    assert_untouched(model, before, plain)


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that runs in `regaze.hooks`, once."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@contextlib.contextmanager
def interrupted(number: int) -> Iterator[Interrupt]:
    """Interrupt the block at a line of `regaze.hooks`; ends quietly either way."""
    interrupt, tracer = Interrupt(number), sys.gettrace()
    try:
        sys.settrace(interrupt)
        yield interrupt
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracer)


def test_an_interrupt_at_any_line_of_attach_leaves_nothing(model: Tiny) -> None:
    plain, before = run(model), trace(model.model)
    specs: list[Any] = [EDITS["vhr"].acts, EDITS["var"].acts, Spec(Raise("all"))]
    number, went_through = 0, False
    while not went_through:
        number += 1
        with interrupted(number) as interrupt:
            attached = attach(model.model, *specs)
        if interrupt.left > 0:
            went_through = True
            attached.detach()
        assert trace(model.model) == before, number
        assert not any(module in SEATS for module in model.model.modules()), number
    assert number > 100
    assert_untouched(model, before, plain)


def test_a_second_detach_finishes_what_an_interrupt_left_undone(model: Tiny) -> None:
    plain, before = run(model), trace(model.model)
    number, went_through = 0, False
    while not went_through:
        number += 1
        first, second = attach(model.model, ALL[2]), attach(model.model, ALL[3])
        second.detach()
        with interrupted(number) as interrupt:
            first.detach()
        went_through = interrupt.left > 0
        first.detach()
        assert trace(model.model) == before, number
        assert not any(module in SEATS for module in model.model.modules()), number
    assert number > 30
    assert_untouched(model, before, plain)


def test_attaching_anew_finishes_an_interrupted_detach(model: Tiny) -> None:
    plain, before = run(model), trace(model.model)
    with attach(model.model, *ALL):
        want = run(model)
    number, went_through = 0, False
    while not went_through:
        number += 7
        first = attach(model.model, *ALL)
        with interrupted(number) as interrupt:
            first.detach()
        went_through = interrupt.left > 0
        if not went_through:
            first.detach()
        with attach(model.model, *ALL):
            first.detach()  # takes off nothing that isn't its own
            if number % 5 == 0:
                assert torch.equal(run(model), want)
        assert trace(model.model) == before, number
    assert_untouched(model, before, plain)


def test_an_interrupt_at_any_line_of_a_pass_leaves_nothing(model: Tiny) -> None:
    plain, before = run(model), trace(model.model)
    with attach(model.model, *ALL):
        want = run(model)
    drawn = random.Random(0)
    for _ in range(40):
        with attach(model.model, *ALL):
            with interrupted(drawn.randrange(1, 2500)):
                run(model)
            assert torch.equal(run(model), want)
        assert trace(model.model) == before
    assert_untouched(model, before, plain)


@pytest.mark.parametrize("options", [{}, {"rows": "class", "tower": "vision"}])
def test_an_interrupted_capture_leaves_nothing(model: Tiny, options: Any) -> None:
    plain, before = run(model), trace(model.model)
    for number in range(1, 400, 7):
        seen = None
        with interrupted(number):
            seen = capture(model.model, **options)
        if seen is not None:
            seen.detach()
        assert trace(model.model) == before, number
    assert_untouched(model, before, plain)


def test_detaching_inside_a_pass_leaves_nothing(model: Tiny) -> None:
    plain, before = run(model), trace(model.model)
    layer: Any = model.model.get_decoder().layers[1]
    attached = attach(model.model, *ALL)
    handle = layer.register_forward_hook(lambda *_: attached.detach())
    with contextlib.suppress(RuntimeError):
        run(model)
    handle.remove()
    assert_untouched(model, before, plain)


def test_what_an_interrupted_call_read_is_not_taken_for_the_next_ones(model: Tiny) -> None:
    """Embeddings of the same shape as a prompt that was interrupted still have no ids."""
    inputs = ask(model, (SHORT, [0]))
    tower: Any = model.model.get_decoder()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    embeddings = torch.randn(*inputs["input_ids"].shape, tower.config.hidden_size)
    for target in (model.model, model.model.model):
        with attach(target, EDITS["pai"].acts):
            handle = tower.layers[0].register_forward_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                model.model(**inputs)
            handle.remove()
            with pytest.raises(ValueError, match="spans="):
                tower(inputs_embeds=embeddings)
