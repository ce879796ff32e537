"""Latents moved down the gradient of a loss on text maps: a `LatentEdit`.

Before a call of the denoiser it runs once more, with gradients, on the conditional rows alone and
only up to the last layer whose map the loss needs:

    z' = z - a grad_z loss(maps of the denoiser at c(t) z)
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.gradients import (
    Descent,
    check_gradients,
    descended,
    differentiable,
    measure,
)
from regaze.hooks.diffusion.latents import LatentEdit
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.tally import Tally
from regaze.hooks.diffusion.text_maps import Reader
from regaze.hooks.diffusion.works import Run, Work


class Objective(ABC):
    """The loss that one run of a pipeline minimises; it may remember earlier steps."""

    watches: bool = False
    """True if it wants to `watch` the denoiser's own passes."""

    @abstractmethod
    def plan(self, step: int) -> Descent | None:
        """The descent of a step; None if it has none."""

    @abstractmethod
    def loss(self, maps: Tensor) -> Tensor:
        """The loss of each sample, "B", from maps "B F R C T" (see `Reader.maps`)."""

    def watch(self, maps: Tensor) -> None:  # noqa: B027 (most have nothing to watch)
        """See the maps at the updated latents, after each step with a plan."""


@dataclass(frozen=True)
class Descend(LatentEdit):
    """Latents moved down the gradient of a loss on text maps, before the denoiser sees them.

    Attributes:
        sites: Cross- or joint attention whose maps the loss needs, all of one resolution; none
            makes it a no-op.
        objective: Makes what a run of the pipeline minimises.
    """

    objective: Callable[[Run], Objective] | None = None

    def begin(self, run: Run) -> Work:
        """Begin a run, with an objective of its own."""
        if self.objective is None:
            raise ValueError("latents can't descend without an objective")
        return _Course(
            self.sites, objective=self.objective, goal=self.objective(run), tally=run.tally
        )


@dataclass(frozen=True, eq=False)
class _Course(Descend):
    """A descent during one run of a pipeline."""

    goal: Any = None
    tally: Tally = field(default_factory=Tally)
    losses: list[Tensor] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    counted = False

    def before(self, pass_: Pass) -> None:
        """Move the pass's latents, if its step has a plan."""
        self.readers.clear()
        step = pass_.latents
        plan = None if step is None or not step.open else self.goal.plan(step.index)
        if step is None or plan is None:
            return
        if pass_.compiled and self.goal.watches:
            raise ValueError(
                "masks are taken in the denoiser's own pass, which is compiled here; take them in "
                'the gradient pass: masks="before"'
            )
        check_gradients(pass_.denoiser)
        before, seen = step.current(), len(self.losses)
        with differentiable(pass_.denoiser):
            one = functools.partial(measure, step.source, self.sites, self.goal.loss, pass_.forward)
            after = descended(before, plan, functools.partial(self._measured, one))
        step.put(after)
        self._count(before, after, len(self.losses) - seen)
        if self.goal.watches:
            self.readers.append(Reader(self.sites, stop=False))

    def _measured(
        self, one: Callable[[Tensor], tuple[Tensor, Tensor]], latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradient = one(latents)
        self.losses.append(loss)
        for site in self.sites:
            self.tally.count(site.name)
        return loss, gradient

    def _count(self, old: Tensor, new: Tensor, passes: int) -> None:
        """Count what an update did to each sample: |z' - z| / |z|."""
        tally, losses = self.tally, self.losses
        change = (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1).clamp(1e-12)
        for site in self.sites:
            tally.add(site.name, change)
        tally.begin()
        total = len(losses)

        def note() -> str:
            first, last = float(losses[0].mean()), float(losses[total - 1].mean())
            return (
                f"{total} gradient passes, {passes} in the last step; loss {first:.3f} at first, "
                f"{last:.3f} at last"
            )

        tally.note = note

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """The sites whose maps are watched in the denoiser's own pass."""
        return self.sites if self.readers else ()

    def attend(self, call: Call) -> Tensor:
        """Watch a map."""
        return self.readers[0].read(call)

    def after(self, pass_: Pass, output: Any) -> Any:
        """Show the objective what was watched."""
        for reader in self.readers:
            self.goal.watch(reader.maps().detach())
        return output
