"""Guidance by perturbation: the hook on a denoiser that runs perturbed branches beside its own.

With eps the denoiser's output, the hook returns for every branch eps + delta,

    delta = sum over guidances of  s (eps_cond - eps_perturbed)

so that a pipeline's own ``uncond + g (cond - uncond)`` becomes that plus delta for every g, and
``cond + delta`` without classifier-free guidance. This is linear in the prediction, whatever it
predicts: the formula of diffusers' PAG pipelines.
"""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regaze.hooks.diffusion.branches import (
    Rows,
    call_of_rows,
    copy_containers,
    find_rows,
    progress_of,
    timestep_of,
)
from regaze.hooks.diffusion.fork import Kept, why_not
from regaze.hooks.diffusion.seat import Call, editing
from regaze.hooks.diffusion.sites import Site, read_layout
from regaze.hooks.report import LayerReport


@dataclass(frozen=True)
class Guidance:
    """One perturbed branch and its weight.

    Attributes:
        sites: Where attention is perturbed; none makes it a no-op.
        perturb: The head outputs of a call, "B H N D", perturbed.
        scale: Weight s of (branch - perturbed).
        adaptive: Loss of weight per timestep after the first: ``max(0, s - a (1000 - t))``.
        start: First active share of the sampling steps.
        stop: Share of the sampling steps at which it ends.
        branch: Which branch is perturbed; "uncond" is the conditional one without guidance.
        scale_alone: Weight where there is no classifier-free guidance, if another.
    """

    sites: tuple[Site, ...]
    perturb: Callable[[Call], Tensor]
    scale: float
    adaptive: float = 0.0
    start: float = 0.0
    stop: float = 1.0
    branch: Literal["cond", "uncond"] = "cond"
    scale_alone: float | None = None


@dataclass
class Entry:
    """A guidance at work, with its counters."""

    guidance: Guidance
    note: str = ""
    steps: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def attend(self, call: Call) -> Tensor:
        """Perturb a call, count it, and now and then (at 1, 2, 4, 8, ...) measure the change."""
        name = call.site.name
        self.calls[name] = count = self.calls.get(name, 0) + 1
        changed = self.guidance.perturb(call)
        if count & (count - 1) == 0:
            stock = call.kernel(call.query, call.key, call.value).float()
            moved = (changed.float() - stock).norm(dim=(2, 3)) / stock.norm(dim=(2, 3)).clamp(1e-12)
            counted = ((moved > 0).float(), moved, torch.ones_like(moved))
            sums = torch.stack([x.sum() for x in counted])
            self.sums[name] = self.sums.get(name, torch.zeros(3)) + sums.double().cpu()
        return changed

    def layers(self) -> list[LayerReport]:
        """What was counted, per site."""
        reports = []
        for site in self.guidance.sites:
            heads, effect, total = self.sums.get(site.name, torch.zeros(3)).tolist()
            total = max(total, 1)
            layer = -1 if site.layer is None else site.layer
            calls = self.calls.get(site.name, 0)
            reports.append(LayerReport(layer, calls, heads / total, effect / total, site.name))
        return reports


@dataclass
class _Pass:
    """What one pass of the denoiser leaves for the branches that follow it."""

    call: dict[str, Any]
    rows: Rows
    active: list[tuple[Entry, float]]
    kept: Kept | None = None
    recording: ExitStack = field(default_factory=ExitStack)


class Guide:
    """The guidances of one denoiser.

    Args:
        denoiser: The U-Net or transformer; may be compiled.
        pipeline: Its pipeline, or None.
        cond_rows: Which rows are conditional, by the user's word.
        fork: Whether perturbed branches may begin at their first edited layer.
    """

    def __init__(
        self, denoiser: nn.Module, pipeline: Any, cond_rows: slice | None, fork: bool
    ) -> None:
        self._denoiser = weakref.ref(denoiser)
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self.cond_rows, self.fork = cond_rows, fork
        self.entries: list[Entry] = []
        self._handles: list[Any] = []
        self._pass: _Pass | None = None
        self._delta: Tensor | None = None

    # -- installing ----------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Add a guidance; the first one installs the hooks."""
        denoiser = self._denoiser()
        if not self.entries and denoiser is not None:
            self._handles = [
                denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
                denoiser.register_forward_hook(self._after, always_call=True),
            ]
        self.entries.append(entry)

    def pop(self, entry: Entry) -> None:
        """Take a guidance off, from anywhere in the stack; the last one removes the hooks."""
        self.entries.remove(entry)
        if not self.entries:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._delta = None

    def of(self, denoiser: nn.Module) -> bool:
        """Whether this is its guide; a deep copy of a model carries its original's."""
        return self._denoiser() is denoiser

    @property
    def pipeline(self) -> Any:
        """The pipeline, while it exists."""
        return None if self._pipeline is None else self._pipeline()

    # -- around one forward pass ---------------------------------------------------------------

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.of(module):
            return  # A deep copy of the model.
        denoiser = inner(module)
        call = copy_containers(_by_name(denoiser, args, kwargs))
        active = [(e, s) for e in self.entries if (s := self._strength(e.guidance, call))]
        if not active:
            return
        rows = find_rows(self.pipeline, call, self.cond_rows)
        self._pass = _Pass(call, rows, active)
        if rows.cond is None:
            return
        reason = why_not(module, call) if self.fork else "fork=False"
        for entry, _ in active:
            entry.note = f"whole extra passes: {reason}" if reason else "forks at its first block"
        if reason is None:
            forks = [e.guidance.sites[0].block for e, _ in active]
            self._pass.kept = Kept(denoiser, forks)
            self._pass.recording.enter_context(self._pass.kept.recording())

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.of(module) or self._pass is None:
            return None
        done, self._pass = self._pass, None
        done.recording.close()
        if output is None:
            return None  # The pass raised.
        prediction = output if isinstance(output, Tensor) else output[0]
        if done.rows.cond is None:
            if self._delta is None or self._delta.shape != prediction.shape:
                raise RuntimeError(
                    "the unconditional branch ran before the conditional one, whose guidance it "
                    "shares; this order of calls isn't supported"
                )
            delta, self._delta = self._delta, None
        else:
            delta = self._difference(inner(module), done, prediction)
            self._delta = delta if done.rows.split else None
        return _with_prediction(output, prediction + _tiled(delta, prediction))

    def _strength(self, guidance: Guidance, call: dict[str, Any]) -> float:
        """The weight of a guidance in this step; 0 means that it needs no pass."""
        if not guidance.sites or guidance.scale == 0:
            return 0.0
        scale = guidance.scale
        always = guidance.start == 0 and guidance.stop == 1
        if not always and not guidance.start <= progress_of(self.pipeline) < guidance.stop:
            return 0.0
        if guidance.adaptive > 0:
            spent = 1000 - timestep_of(call, self.pipeline)
            scale = max(0.0, scale - guidance.adaptive * spent)
        return scale

    def _difference(self, denoiser: Any, done: _Pass, prediction: Tensor) -> Tensor:
        """The sum over guidances of s (branch - perturbed)."""
        total: Tensor | None = None
        for entry, scale in done.active:
            rows = self._rows_of(entry.guidance, done.rows)
            if rows is done.rows.cond and entry.guidance.scale_alone is not None:
                scale *= entry.guidance.scale_alone / entry.guidance.scale
            call = call_of_rows(done.call, rows, done.rows.batch)
            layout = read_layout(denoiser, call)
            fork = entry.guidance.sites[0].block
            with ExitStack() as stack:
                stack.enter_context(editing(denoiser, entry.guidance.sites, layout, entry.attend))
                if done.kept is not None:
                    stack.enter_context(done.kept.replaying(fork, rows, done.rows.batch))
                if any(m._compiled_call_impl is not None for m in denoiser.modules()):
                    # Hooks inside a compiled block would compile it anew, for every branch.
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                output = denoiser.forward(**copy_containers(call))
            entry.steps += 1
            perturbed = output if isinstance(output, Tensor) else output[0]
            delta = scale * (prediction[rows] - perturbed)
            total = delta if total is None else total + delta
        if total is None:
            raise RuntimeError("no guidance is active")
        return total

    def _rows_of(self, guidance: Guidance, rows: Rows) -> slice:
        if guidance.branch == "uncond" and rows.split:
            raise NotImplementedError(
                "this guidance perturbs the unconditional branch, which this pipeline runs after "
                'the conditional one; use sense="code"'
            )
        chosen = rows.uncond if guidance.branch == "uncond" and rows.uncond else rows.cond
        return chosen or slice(0, rows.batch)


# -- small parts -------------------------------------------------------------------------------


def inner(module: Any) -> Any:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _by_name(denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
    bound.arguments.pop("self")
    rest = bound.arguments.pop("kwargs", {})
    return {**bound.arguments, **rest}


def _tiled(delta: Tensor, prediction: Tensor) -> Tensor:
    """The difference once for every branch of the batch."""
    return delta.repeat(len(prediction) // len(delta), *[1] * (delta.ndim - 1))


def _with_prediction(output: Any, prediction: Tensor) -> Any:
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    first = dataclasses.fields(output)[0].name
    return dataclasses.replace(output, **{first: prediction})
