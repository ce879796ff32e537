"""Latents moved inside a running pipeline, right before the denoiser sees them.

With z the pipeline's latents and c(t) the scheduler's scaling of the model's input, c(t) z' is what
the denoiser is called with, in all its branches, what perturbed branches see, and z' is what the
scheduler's next ``step`` gets as its sample. That call is wrapped for this once, on the scheduler's
instance and for the thread that waits; no tensor of the pipeline's is written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.relay import Handover, hand
from regaze.hooks.diffusion.running import Running
from regaze.hooks.diffusion.source import Source
from regaze.hooks.diffusion.works import Work


@dataclass(frozen=True)
class LatentEdit(Work):
    """Latents moved before the denoiser sees them; a method overrides `move`."""

    needs_latents = True

    def move(self, latents: Tensor, pass_: Pass) -> Tensor:
        """Latents to go on with.

        Args:
            latents: The pipeline's, float32.
            pass_: The pass that begins; ``pass_.latents`` knows the step.
        """
        return latents

    def before(self, pass_: Pass) -> None:
        """Move the pass's latents."""
        if pass_.latents is not None and pass_.latents.open:
            pass_.latents.put(self.move(pass_.latents.current(), pass_))


class Step:
    """The latents of one step, while works move them.

    Attributes:
        index: The step's index.
        steps: The number of steps.
        open: True if they can be moved in this pass: not in that of another branch, nor in a
            second-order scheduler's correction, which starts again from latents kept.
    """

    def __init__(self, owner: Latents, pass_: Pass, running: Running, at: tuple[int, int]) -> None:
        (self.index, self.steps), self.open = at, True
        self._run, self._variables = running.run, running.variables
        self.sample: Any = None
        self._owner, self._pass = owner, pass_
        self._source: Source | None = None
        self._old: Tensor | None = None
        self._new: Tensor | None = None

    @property
    def source(self) -> Source:
        """Their place in the denoiser's call.

        Raises:
            RuntimeError: The other branch ran with latents that weren't moved yet.
            ValueError: See `Source.of`.
        """
        if self._source is None:
            if self._owner.alone == self.index:
                raise RuntimeError(
                    "the unconditional branch ran before the conditional one, with latents that "
                    "weren't updated yet; this order of calls isn't supported"
                )
            self._source = Source.of(self._pass)
        return self._source

    def current(self) -> Tensor:
        """The latents now, float32."""
        if self._new is None:
            _ = self.source
            self._old = self._variables["latents"]
            self._new = self._old.float()
        return self._new

    def put(self, latents: Tensor) -> None:
        """Go on with other latents."""
        self._new = latents

    def finish(self) -> None:
        """Hand moved latents to the denoiser and the scheduler."""
        if self._old is None or self._new is None:
            return
        new = self._new.detach().to(self._old.dtype)
        self.sample = self.source.sample(new, self._pass.call)
        scheduler = self._pass.pipeline.scheduler
        waiting = Handover(self.source, self._run, self.index, self._old, new)
        self._owner.waiting = waiting
        hand(scheduler, waiting)


@dataclass
class Latents:
    """The latents that one thread moves before one denoiser, from step to step."""

    waiting: Handover | None = None
    alone: int = -1

    def begin(self, pass_: Pass) -> Step:
        """The step that a pass belongs to.

        Raises:
            RuntimeError: The latents of the step before were never taken by the scheduler.
            ValueError: This pipeline's steps can't be told.
        """
        running = pass_.running
        if running is None or running.step is None:
            who = "a bare denoiser" if running is None else type(running.pipeline).__name__
            raise ValueError(
                f"{who} isn't running, or counts its steps otherwise than other pipelines, so that "
                "its latents can't be updated"
            )
        step = Step(self, pass_, running, running.step)
        if self.waiting and self.waiting.run != running.run:
            self.recall()  # Another run's, which ended before its scheduler's step.
        waiting = self.waiting if self.waiting and self.waiting.step == step.index else None
        if pass_.rows.cond is None:
            # The other branch of a pipeline that makes a call for each.
            step.open = False
            self.alone = -1 if waiting else step.index
            if waiting is not None:
                step.sample = waiting.source.sample(waiting.new, pass_.call)
            return step
        if self.waiting and not self.waiting.taken and step.index > self.waiting.step:
            raise RuntimeError(
                f"the latents updated in step {self.waiting.step} were never taken: "
                f"{type(pass_.pipeline).__name__} didn't call its scheduler's step"
            )
        if self.alone != step.index:
            self.alone = -1
        self.recall()
        if getattr(pass_.pipeline.scheduler, "state_in_first_order", True) is False:
            step.open = False
        return step

    def recall(self) -> None:
        """Give the scheduler its own step back."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.recall()
