"""Ctrl-C, time limits and cancelled requests: whatever ends a pass, nothing stays."""

from __future__ import annotations

import gc
import inspect
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flows import random_flow
from making import move
from scenes import traces
from tiny_pipelines import FAMILIES, quiet
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

import regaze
from regaze import hooks

FLOW = random_flow(2)
SPECS: dict[str, Callable[[str], Any]] = {
    "pag": lambda family: regaze.PAG(layers=FAMILIES[family].perturb),
    "seg": lambda family: regaze.SEG(layers=FAMILIES[family].perturb, sigma=1.0),
    "softpag": lambda family: regaze.SoftPAG(layers=FAMILIES[family].perturb),
    "flow_warp": lambda family: regaze.FlowWarp(flow=FLOW),
    "a_star": lambda family: move(regaze.AStar, family),
    "attend_and_excite": lambda family: move(regaze.AttendAndExcite, family, refine=""),
}
ONCE: dict[str, Any] = {"num_inference_steps": 1}
PACKAGE = str(Path(hooks.__file__).parent)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def others_attention() -> Tensor:
    """The output of a model that nothing is attached to."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 6, 4, generator=generator) for _ in range(3))
    return F.scaled_dot_product_attention(query, key, value)


class Case:
    """A pipeline and a method, and how the pipeline was before."""

    def __init__(self, family: str, method: str) -> None:
        self.kind, self.spec = FAMILIES[family], SPECS[method](family)
        self.pipe = quiet(self.kind.build())
        self.denoiser = getattr(self.pipe, self.kind.denoiser)
        self.plain, self.other = self.run(), others_attention()
        self.before = self.state()

    def run(self) -> Tensor:
        return self.kind.run(self.pipe, **ONCE)

    def state(self) -> Any:
        classes = [(type(m), type(getattr(m, "processor", None))) for m in self.denoiser.modules()]
        return traces(self.pipe, self.denoiser), classes, len(list(self.denoiser.parameters()))

    def interrupted(self, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        """Paint until an interrupt comes, and check that nothing stays."""
        attached = regaze.attach(self.pipe, self.spec)
        try:
            begin()
            self.run()
        except KeyboardInterrupt:
            pass
        finally:
            end()
        # While it is attached, others are none of its business.
        assert not _get_current_function_mode_stack()
        assert torch.equal(others_attention(), self.other)
        attached.detach()
        assert self.state() == self.before
        assert torch.equal(self.run(), self.plain)


class Lines:
    """Counts the lines of the engine that run, and interrupts at one of them."""

    def __init__(self) -> None:
        self.count, self.at = 0, -1

    def begin(self) -> None:
        self.count = 0
        sys.settrace(self._call)

    def end(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._line


def every_case(*families: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("family", "method"), [(family, method) for family in families for method in SPECS]
    )


@every_case("sd", "sd3")
def test_interrupts_at_every_module_leave_nothing(family: str, method: str) -> None:
    case = Case(family, method)
    names = [site.name for site in regaze.hooks.diffusion.sites(case.pipe)]
    for name in (names[0], names[len(names) // 2], names[-1], ""):
        module = case.denoiser.get_submodule(name)
        for register in (module.register_forward_pre_hook, module.register_forward_hook):
            for nth in (1, 2):
                count = [0]

                def fails(*_: Any, c: list[int] = count, n: int = nth) -> None:
                    c[0] += 1
                    if c[0] == n:
                        raise KeyboardInterrupt

                handle = register(fails)
                try:
                    attached = regaze.attach(case.pipe, case.spec)
                    with suppress(KeyboardInterrupt):
                        case.run()
                finally:
                    handle.remove()
                assert not _get_current_function_mode_stack()
                attached.detach()
                assert case.state() == case.before
    assert torch.equal(case.run(), case.plain)


@every_case("sd", "sd3")
def test_interrupts_at_any_line_leave_nothing(family: str, method: str) -> None:
    case = Case(family, method)
    lines = Lines()

    case.interrupted(lines.begin, lines.end)
    for point in random.Random(0).sample(range(1, lines.count + 1), 12):
        lines.at = point
        case.interrupted(lines.begin, lines.end)
        assert lines.count >= point


@every_case("sd")
def test_interrupts_while_attaching_and_detaching_leave_nothing(family: str, method: str) -> None:
    case = Case(family, method)
    lines = Lines()

    def both() -> None:
        attached = None
        try:
            lines.begin()
            attached = regaze.attach(case.pipe, case.spec)
            attached.detach()
        except KeyboardInterrupt:
            pass
        finally:
            lines.end()
        if attached is not None:
            attached.detach()

    both()
    for point in random.Random(0).sample(range(1, lines.count + 1), 60):
        lines.at = point
        both()
        assert case.state() == case.before
    assert torch.equal(case.run(), case.plain)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timer signals")
@every_case("sd", "sd3")
def test_signals_at_random_moments_leave_nothing(family: str, method: str) -> None:
    case, chance = Case(family, method), random.Random(1)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(6):
            case.interrupted(
                lambda: signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-3, 0.05)),
                lambda: signal.setitimer(signal.ITIMER_REAL, 0),
            )
    finally:
        signal.signal(signal.SIGALRM, before)
        # Struck as it ends, the `torch.no_grad` around a pipeline's own call leaves gradients off.
        torch.set_grad_enabled(True)


def test_a_pipeline_saves_all_of_its_weights_in_the_middle_of_a_pass() -> None:
    pipe, kind = quiet(FAMILIES["sd"].build()), FAMILIES["sd"]
    names, seen = set(pipe.unet.state_dict()), []
    hook = pipe.unet.mid_block.register_forward_hook(
        lambda *_: seen.append((set(pipe.unet.state_dict()), type(pipe.unet).__name__))
    )
    with regaze.attach(pipe, regaze.PAG(layers=kind.perturb)):
        kind.run(pipe)
    hook.remove()
    assert seen
    assert all(one == (names, "UNet2DConditionModel") for one in seen)


def test_an_interrupt_while_torch_has_the_mode_off_leaves_nothing() -> None:
    popping = inspect.unwrap(torch.overrides._pop_mode_temporarily).__code__
    case, hits = Case("sd", "pag"), 0

    def trace(frame: FrameType, now: str, _: Any) -> Any:
        nonlocal hits
        if frame.f_code.co_name != "__exit__" or "contextlib" not in frame.f_code.co_filename:
            return None
        made = getattr(frame.f_locals.get("self"), "gen", None)
        if getattr(made, "gi_code", None) is not popping:
            return None
        if now == "line":
            hits += 1
            raise KeyboardInterrupt
        return trace

    case.interrupted(lambda: sys.settrace(trace), lambda: sys.settrace(None))
    gc.collect()
    assert hits == 1
    assert not _get_current_function_mode_stack()
