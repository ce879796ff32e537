"""Latents moved down a gradient inside a running pipeline, right before the denoiser sees them.

Before a call of the denoiser it runs once more, with gradients, on the conditional rows alone and
only up to the last layer whose map the loss needs. With z the pipeline's latents and c(t) the
scheduler's scaling of the model's input,

    z' = z - a grad_z loss(maps of the denoiser at c(t) z)

is what the denoiser is then called with, in all its branches, what perturbed branches see, and
what the scheduler's next ``step`` gets as its sample. That call is wrapped for this once, on the
scheduler's instance; no tensor of the pipeline's is written to.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.fork import is_compiled
from regaze.hooks.diffusion.gradients import Edited, Source, descended, differentiable, measure
from regaze.hooks.diffusion.rows import Rows, variables_of
from regaze.hooks.diffusion.sites import read_layout
from regaze.hooks.diffusion.text import read_text
from regaze.hooks.diffusion.text_maps import Reader
from regaze.hooks.diffusion.works import Entry, LatentEdit, Objective, Run


@dataclass
class _Course:
    """An update during one run of a pipeline."""

    objective: Objective
    step: int
    losses: list[Tensor] = field(default_factory=list)


class Latents:
    """All updates of latents before one denoiser."""

    def __init__(self) -> None:
        self._courses: dict[int, _Course] = {}
        self._handover: _Handover | None = None
        self._alone = -1

    def forget(self, entry: Entry) -> None:
        """An update comes off; maybe in the middle of a step."""
        self._courses.pop(id(entry), None)
        self._recall()

    def before(
        self,
        module: Any,
        pipeline: Any,
        call: Mapping[str, Any],
        rows: Rows,
        entries: Sequence[Entry],
        edited: Edited,
    ) -> Tensor | None:
        """Move the latents; the sample to call the denoiser with instead, or None.

        Args:
            module: The denoiser, maybe compiled.
            pipeline: The pipeline that is running.
            call: The call's arguments by name.
            rows: What its rows are.
            entries: The updates.
            edited: Puts edits of the denoiser's own branches around a gradient pass.

        Raises:
            RuntimeError: The latents of the step before were never taken by the scheduler, or
                branches come in an order that can't work.
            ValueError: This pipeline's latents can't be told, or its scheduler would ignore them.
        """
        step, steps = _step_of(pipeline)
        waiting = self._handover if self._handover and self._handover.step == step else None
        if rows.cond is None:
            # The other branch of a pipeline that makes a call for each.
            self._alone = -1 if waiting else step
            return None if waiting is None else waiting.source.sample(waiting.new, call)
        if self._handover and step > self._handover.step:
            raise RuntimeError(
                f"the latents updated in step {self._handover.step} were never taken: "
                f"{type(pipeline).__name__} didn't call its scheduler's step"
            )
        self._recall()
        if getattr(pipeline.scheduler, "state_in_first_order", True) is False:
            return None  # A second-order scheduler's correction; it starts again from latents kept.
        alone, self._alone = self._alone, -1
        plans = []
        for entry in entries:
            course = self._course(entry, pipeline, call, rows, step, steps)
            plan = course.objective.plan(step)
            if plan is not None:
                plans.append((entry, course, plan))
        if not plans:
            return None
        if alone == step:
            raise RuntimeError(
                "the unconditional branch ran before the conditional one, with latents that "
                "weren't updated yet; this order of calls isn't supported"
            )
        if is_compiled(module) and any(course.objective.watches for _, course, _ in plans):
            raise ValueError(
                "masks are taken in the denoiser's own pass, which is compiled here; take them in "
                'the gradient pass: masks="before"'
            )
        source = Source.of(module, pipeline, call, rows)
        latents = old = variables_of(pipeline)["latents"]
        with differentiable(source.denoiser):
            for entry, course, plan in plans:
                before, seen = latents.float(), len(course.losses)
                one = functools.partial(_measured, source, entry, course, edited)
                latents = descended(before, plan, one)
                _count(entry, course, before, latents, seen)
        new = latents.detach().to(old.dtype)
        self._handover = _Handover(self._recall, pipeline.scheduler, source, step, old, new)
        return source.sample(new, call)

    @contextmanager
    def watching(
        self, denoiser: Any, call: Mapping[str, Any], rows: Rows, entries: Sequence[Entry]
    ) -> Iterator[None]:
        """Show the pass inside to objectives that want to see it."""
        waiting = self._handover
        with ExitStack() as stack:
            readers = []
            for entry in entries:
                course = self._courses.get(id(entry))
                if waiting is None or rows.cond is None or course is None:
                    continue
                if course.objective.watches and course.objective.plan(waiting.step):
                    layout, which = read_layout(denoiser, call), (rows.batch, rows.cond)
                    reader = Reader(entry.work.sites, layout, which, stop=False)
                    stack.enter_context(reader.reading(denoiser))
                    readers.append((course.objective, reader))
            yield
        for objective, reader in readers:
            objective.watch(reader.maps().detach())

    def _recall(self) -> None:
        if self._handover is not None:
            self._handover.restore()
            self._handover = None

    def _course(
        self,
        entry: Entry,
        pipeline: Any,
        call: Mapping[str, Any],
        rows: Rows,
        step: int,
        steps: int,
    ) -> _Course:
        """The course of an update; a new one if another run has begun."""
        course = self._courses.get(id(entry))
        if course is None or step <= course.step:
            if not isinstance(entry.work, LatentEdit):
                raise TypeError("only updates of latents have a course")
            cond = rows.cond or slice(0, rows.batch)
            samples = cond.stop - cond.start
            words = int(call["encoder_hidden_states"].shape[1])
            text = read_text(pipeline, samples, words)
            objective = entry.work.begin(Run(samples, steps, text))
            course = self._courses[id(entry)] = _Course(objective, step)
        course.step = step
        return course


def _measured(
    source: Source, entry: Entry, course: _Course, edited: Edited, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """`measure`, counted."""
    sites = entry.work.sites
    loss, gradient = measure(source, sites, course.objective, edited, latents)
    course.losses.append(loss)
    for site in sites:
        entry.calls[site.name] = entry.calls.get(site.name, 0) + 1
    return loss, gradient


def _count(entry: Entry, course: _Course, old: Tensor, new: Tensor, seen: int) -> None:
    """Count what an update did to each sample."""
    moved = (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1).clamp(1e-12)
    total = torch.ones_like(moved)
    sums = torch.stack([x.sum() for x in ((moved > 0).float(), moved, total)])
    for site in entry.work.sites:
        entry.add(site.name, sums)
    entry.steps += 1
    first, last = (float(course.losses[k].mean()) for k in (0, -1))
    passes = f"{len(course.losses)} gradient passes, {len(course.losses) - seen} in the last step"
    entry.note = f"{passes}; loss {first:.3f} at first, {last:.3f} at last"


# -- on to the scheduler -----------------------------------------------------------------------


class _Handover:
    """Updated latents on their way from the denoiser's call to the scheduler's."""

    def __init__(
        self,
        recall: Callable[[], None],
        scheduler: Any,
        source: Source,
        step: int,
        old: Tensor,
        new: Tensor,
    ) -> None:
        self.source, self.step, self.new = source, step, new
        self._scheduler, self._before = scheduler, vars(scheduler).get("step")
        stock = scheduler.step

        @functools.wraps(stock)
        def take(*args: Any, **kwargs: Any) -> Any:
            if self._scheduler is None:  # Someone else wrapped the wrapped call and kept it.
                return stock(*args, **kwargs)
            recall()
            bound = inspect.signature(stock).bind(*args, **kwargs)
            given = bound.arguments.get("sample")
            if given is not old and not (isinstance(given, Tensor) and torch.equal(given, old)):
                raise RuntimeError(
                    f"{type(scheduler).__name__}.step got a sample that isn't the latents that "
                    "were updated, so the update would be lost; this pipeline isn't supported"
                )
            bound.arguments["sample"] = new
            return stock(*bound.args, **bound.kwargs)

        self._take = scheduler.step = take

    def restore(self) -> None:
        """Give the scheduler its own step back."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is None or vars(scheduler).get("step") is not self._take:
            return
        if self._before is None:
            del scheduler.step
        else:
            scheduler.step = self._before


def _step_of(pipeline: Any) -> tuple[int, int]:
    variables = variables_of(pipeline)
    step, steps = variables.get("i"), variables.get("timesteps")
    if not isinstance(step, int) or steps is None:
        raise ValueError(
            f"{type(pipeline).__name__} isn't running, or counts its steps otherwise than other "
            "pipelines, so that its latents can't be updated"
        )
    return step, len(steps)
