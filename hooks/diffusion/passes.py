"""One forward pass of a denoiser, as works are shown it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from regaze.hooks.diffusion.families import UNET, Family
from regaze.hooks.diffusion.rows import Rows
from regaze.hooks.diffusion.running import (
    Running,
    counts_training_steps,
    progress_of,
    timestep_of,
)
from regaze.hooks.diffusion.sites import Layout, Site

Editors = Mapping[Site, Sequence[Callable[..., Tensor]]]
"""Functions that make the head outputs of a site's calls, one after the other, by site."""


class StepLatents(Protocol):
    """A pipeline's latents in one step, for works that move them.

    Attributes:
        open: True if they may still be moved.
        sample: Sample that the denoiser is called with instead, once they were moved; None before.
        index: The step.
        steps: Number of steps.
    """

    open: bool
    sample: Any
    index: int
    steps: int

    @property
    def source(self) -> Any:
        """Their place in the denoiser's call: `regaze.hooks.diffusion.latents.Source`."""

    def current(self) -> Tensor:
        """The latents as they are now."""

    def put(self, latents: Tensor) -> None:
        """Put others in their place."""

    def finish(self) -> None:
        """Hand them on to the scheduler."""


def ended(call: dict[str, Any], editors: Editors) -> Any:
    """Refuse to run a denoiser beside a pass that has ended."""
    raise RuntimeError("the denoiser can't run beside a pass that isn't running")


@dataclass
class Pass:
    """One forward pass of a denoiser.

    Attributes:
        denoiser: The model, unwrapped.
        family: Facts known of the model's class.
        call: The pass's arguments by name.
        rows: Division of the batch's rows into branches.
        layout: Layout of the pass's tokens.
        running: The pipeline that runs it, or None.
        compiled: True if the denoiser is compiled.
        forward: Runs the denoiser on another call, edited as the main pass and by more editors.
        latents: The pipeline's latents, for works that asked for them.
        main: The pass beside which this one runs as a branch; None for the main pass.
        notes: Notes of works on the pass's calls, by keys of their own, kept until it ends.
    """

    denoiser: Any
    family: Family
    call: dict[str, Any]
    rows: Rows
    layout: Layout
    running: Running | None
    compiled: bool = False
    forward: Callable[[dict[str, Any], Editors], Any] = field(default=ended, repr=False)
    latents: StepLatents | None = None
    main: Pass | None = None
    notes: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def pipeline(self) -> Any:
        """The pipeline that runs it, or None."""
        return None if self.running is None else self.running.pipeline

    @property
    def sample(self) -> Any:
        """The latents that the denoiser is called with."""
        return self.call[self.family.sample]

    @property
    def progress(self) -> float:
        """Share of the sampling steps that lie behind, in [0, 1).

        Raises:
            ValueError: Nobody counts them.
        """
        return progress_of(self.running)

    @property
    def timestep(self) -> float:
        """The timestep as the scheduler counts it."""
        return timestep_of(self.running, self.call)

    @property
    def training_time(self) -> float:
        """The timestep in training steps, 0 to 1000.

        Raises:
            ValueError: It isn't counted in them, or that isn't known.
        """
        bare_unet = self.running is None and self.family.blocks == UNET
        if bare_unet or counts_training_steps(self.running):
            return self.timestep
        who = "loops around a bare transformer may count"
        if self.pipeline is not None:
            scheduler = getattr(self.pipeline, "scheduler", None)
            verb = "counts" if hasattr(scheduler, "config") else "may count"
            who = f"the {type(scheduler).__name__} of this {type(self.pipeline).__name__} {verb}"
        raise ValueError(
            f"adaptive and until go by training steps, 0 to 1000, and {who} time otherwise; leave "
            "them out, or end by a share of the sampling steps: stop"
        )

    def within(self, start: float, stop: float) -> bool:
        """True if its step lies in a window, in shares of the steps."""
        return (start == 0 and stop == 1) or start <= self.progress < stop
