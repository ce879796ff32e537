"""The state that a thread keeps from pass to pass of one denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regaze.hooks.diffusion.inside import Inside
from regaze.hooks.diffusion.latents import Latents
from regaze.hooks.diffusion.outside import Outside


@dataclass
class PerThread:
    """The state that one thread keeps from pass to pass.

    Attributes:
        latents: The latents of its running pipeline.
        delta: What guidance added to the conditional call, and when, for the call of the
            unconditional branch that follows.
        outside: Its last call of a denoiser that no pipeline ran.
        inside: Its last call of the denoiser's own ``forward``, until it was looked at.
    """

    latents: Latents = field(default_factory=Latents)
    delta: tuple[Any, Any] | None = None
    outside: Outside = field(default_factory=Outside)
    inside: Inside | None = None
