"""The hook on a denoiser: moved latents, edits in its own branches, perturbed branches beside them.

With eps the denoiser's output, the hook returns for every branch eps + delta,

    delta = sum over guidances of  s (eps_cond - eps_perturbed)

so that a pipeline's own ``uncond + g (cond - uncond)`` becomes that plus delta for every g, and
``cond + delta`` without classifier-free guidance. This is linear in the prediction, whatever it
predicts: the formula of diffusers' PAG pipelines.

A main edit acts in every pass, perturbed ones included: guidance leads away from what the edited
model would predict. Where both are on a layer, the perturbation stands in the edit's place.
"""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.diffusion.fork import Kept, is_compiled, why_not
from regaze.hooks.diffusion.host import inner
from regaze.hooks.diffusion.kernel import editing
from regaze.hooks.diffusion.latents import Latents
from regaze.hooks.diffusion.rows import (
    Rows,
    call_by_name,
    call_of_rows,
    copy_containers,
    find_rows,
    progress_of,
    timestep_of,
    variables_of,
)
from regaze.hooks.diffusion.sites import Layout, read_layout
from regaze.hooks.diffusion.works import Attend, Branch, Entry, LatentEdit


@dataclass
class _Pass:
    """What one pass of the denoiser leaves for the branches that follow it."""

    call: dict[str, Any]
    rows: Rows
    edits: list[Entry]
    guidances: list[tuple[Entry, Branch, float]]
    kept: Kept | None = None
    around: ExitStack = field(default_factory=ExitStack)


class Seat:
    """Everything attached to one denoiser.

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
        self._latents = Latents()

    # -- installing ----------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Add an edit or guidance; the first one installs the hooks."""
        denoiser = self._denoiser()
        if not self.entries and denoiser is not None:
            self._handles = [
                denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
                denoiser.register_forward_hook(self._after, always_call=True),
            ]
        self.entries.append(entry)

    def pop(self, entry: Entry) -> None:
        """Take one off, from anywhere in the stack; the last one removes the hooks."""
        self.entries.remove(entry)
        self._latents.forget(entry)
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
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.of(module):
            return None  # A deep copy of the model.
        denoiser = inner(module)
        call = copy_containers(call_by_name(denoiser, args, kwargs))
        edits = [e for e in self.entries if isinstance(e.work, Attend) and self._in_window(e.work)]
        guidances = [
            (e, e.work, scale)
            for e in self.entries
            if isinstance(e.work, Branch) and (scale := self._strength(e.work, call))
        ]
        updates = [e for e in self.entries if isinstance(e.work, LatentEdit) and not e.idle]
        if not edits and not guidances and not updates:
            return None
        rows = find_rows(self.pipeline, call, self.cond_rows)
        moved: Tensor | None = None
        if updates:
            # Edits act in the gradient pass, too.
            edited = partial(self._edited, denoiser, edits)
            moved = self._latents.before(module, self.pipeline, call, rows, updates, edited)
        if moved is not None:
            call["sample" if "sample" in call else "hidden_states"] = moved
        self._pass = done = _Pass(call, rows, edits, guidances)
        layout = self._layout(denoiser, call, rows.branches)
        if edits and any(is_compiled(part) for part in module.modules()):
            # Compiled code doesn't see the hooks that edits come by.
            done.around.enter_context(torch.compiler.set_stance("force_eager"))
            for entry in edits:
                entry.note = "the denoiser runs uncompiled in these steps"
        done.around.enter_context(_main_edits(denoiser, edits, layout))
        done.around.enter_context(self._latents.watching(denoiser, call, rows, updates))
        self._prepare(module, done)
        return None if moved is None else _with_sample(moved, args, kwargs)

    def _edited(
        self, denoiser: Any, edits: Sequence[Entry], call: Mapping[str, Any]
    ) -> AbstractContextManager[None]:
        return _main_edits(denoiser, edits, self._layout(denoiser, call))

    def _prepare(self, module: nn.Module, done: _Pass) -> None:
        """Keep what perturbed branches need of the pass that begins."""
        call, guidances = done.call, done.guidances
        if done.rows.cond is None or not guidances:
            return
        reason = why_not(module, call) if self.fork else "fork=False"
        for entry, _, _ in guidances:
            entry.note = f"whole extra passes: {reason}" if reason else "forks at its first block"
        if reason is None:
            done.kept = Kept(inner(module), [work.sites[0].block for _, work, _ in guidances])
            done.around.enter_context(done.kept.recording())

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.of(module) or self._pass is None:
            return None
        done, self._pass = self._pass, None
        # After an exception the contexts must not complain of what therefore never ran.
        done.around.__exit__(*(sys.exc_info() if output is None else (None, None, None)))
        if output is None:
            return None
        for entry in done.edits:
            entry.steps += 1
        if not done.guidances:
            return None
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

    def _in_window(self, work: Attend | Branch) -> bool:
        """Whether it acts in this step."""
        if not work.sites:
            return False
        always = work.start == 0 and work.stop == 1
        return always or work.start <= progress_of(self.pipeline) < work.stop

    def _strength(self, work: Branch, call: dict[str, Any]) -> float:
        """The weight of a guidance in this step; 0 means that it needs no pass."""
        if work.scale == 0 or not self._in_window(work):
            return 0.0
        if work.adaptive > 0:
            spent = 1000 - timestep_of(call, self.pipeline)
            return max(0.0, work.scale - work.adaptive * spent)
        return work.scale

    def _difference(self, denoiser: Any, done: _Pass, prediction: Tensor) -> Tensor:
        """The sum over guidances of s (branch - perturbed)."""
        total: Tensor | None = None
        for entry, guidance, scale in done.guidances:
            rows = self._rows_of(guidance, done.rows)
            if rows is done.rows.cond and guidance.scale_alone is not None:
                scale *= guidance.scale_alone / guidance.scale
            call = call_of_rows(done.call, rows, done.rows.batch)
            layout = self._layout(denoiser, call)
            fork = guidance.sites[0].block
            skipped = done.kept.skipped(fork) if done.kept else []
            taken = {site.name for site in guidance.sites}
            with ExitStack() as stack:
                edits = _main_edits(denoiser, done.edits, layout, skipped, taken)
                stack.enter_context(edits)
                stack.enter_context(editing(denoiser, guidance.sites, layout, entry.attend))
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

    def _layout(self, denoiser: Any, call: Mapping[str, Any], branches: int = 1) -> Layout:
        """How the tokens and rows of a pass are laid out."""
        images = variables_of(self.pipeline).get("num_images_per_prompt") or 1
        return replace(read_layout(denoiser, call), branches=branches, images=images)

    def _rows_of(self, guidance: Branch, rows: Rows) -> slice:
        if guidance.branch == "uncond" and rows.split:
            raise NotImplementedError(
                "this guidance perturbs the unconditional branch, which this pipeline runs after "
                'the conditional one; use sense="code"'
            )
        chosen = rows.uncond if guidance.branch == "uncond" and rows.uncond else rows.cond
        return chosen or slice(0, rows.batch)


# -- small parts -------------------------------------------------------------------------------


@contextmanager
def _main_edits(
    denoiser: Any,
    entries: Sequence[Entry],
    layout: Layout,
    skipped: Sequence[str] = (),
    taken: Collection[str] = (),
) -> Iterator[None]:
    """Edit the pass inside by main edits, but for blocks that don't run and layers taken."""
    with ExitStack() as stack:
        for entry in entries:
            sites = [s for s in entry.work.sites if s.block not in skipped and s.name not in taken]
            stack.enter_context(editing(denoiser, sites, layout, entry.attend))
        yield


def _tiled(delta: Tensor, prediction: Tensor) -> Tensor:
    """The difference once for every branch of the batch."""
    return delta.repeat(len(prediction) // len(delta), *[1] * (delta.ndim - 1))


def _with_sample(moved: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments with another sample, which denoisers take first."""
    if args:
        return (moved, *args[1:]), kwargs
    return args, {**kwargs, "sample" if "sample" in kwargs else "hidden_states": moved}


def _with_prediction(output: Any, prediction: Tensor) -> Any:
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    first = dataclasses.fields(output)[0].name
    return dataclasses.replace(output, **{first: prediction})
