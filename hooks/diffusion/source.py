"""The place of a pipeline's latents, and how the denoiser's sample is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import call_of_rows


@dataclass(frozen=True)
class Source:
    """The place of a pipeline's latents in its denoiser's call.

    Attributes:
        scale: Function that the pipeline applies to them before the call.
        cond: The call's arguments, of the conditional rows alone.
        name: Name of the argument that holds them.
    """

    scale: Callable[[Tensor], Tensor]
    cond: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, pass_: Pass) -> Source:
        """Find the place of the latents in a pass.

        Raises:
            ValueError: The call's sample isn't made of the pipeline's latents alone, or its
                scheduler would ignore that they move.
        """
        pipeline, running = pass_.pipeline, pass_.running
        variables = {} if running is None else running.variables
        scheduler = pipeline.scheduler
        _check_corrector(scheduler, len(variables["timesteps"]))
        rows, name = pass_.rows, pass_.family.sample
        every = slice(0, rows.batch)
        cond = call_of_rows(pass_.call, rows.cond or every, rows.batch, pass_.family)
        latents, sample = variables.get("latents"), cond[name]
        scales: list[Callable[[Tensor], Tensor]] = [lambda z: z]
        if hasattr(scheduler, "scale_model_input") and "t" in variables:
            scales.insert(0, partial(_scaled, scheduler, variables["t"]))
        for scale in scales:
            if not isinstance(latents, Tensor) or len(latents) != len(sample):
                continue
            found = cls(scale, cond, name)
            whole, scaled = _joined(sample), _like(sample, scale(latents))
            if torch.equal(whole[:, : scaled.shape[1]], scaled):
                return found
        raise ValueError(
            f"{type(pipeline).__name__} calls its denoiser with something else than its latents, "
            "which therefore can't be updated; use the plain text-to-image pipeline of this model"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the call's sample."""
        return _joined(self.cond[self.name]).dtype

    def sample(self, latents: Tensor, call: Mapping[str, Any]) -> Any:
        """A call's sample with other latents, in all its branches."""
        given = call[self.name]
        old, scaled = _joined(given), _like(given, self.scale(latents))
        scaled = scaled.repeat(len(old) // len(scaled), *[1] * (old.ndim - 1))
        # Inpainting's mask and masked image follow the latents.
        rest = old[:, scaled.shape[1] :]
        new = torch.cat([scaled, rest], 1) if rest.shape[1] else scaled
        return list(new) if isinstance(given, list) else new


def _joined(sample: Any) -> Tensor:
    """A sample as one tensor, which some denoisers take as a list with a tensor for each row."""
    return torch.stack(sample) if isinstance(sample, list) else sample


def _like(sample: Any, latents: Tensor) -> Tensor:
    """Latents in the form of a sample: rows of a list have an axis of frames (Z-Image)."""
    whole = _joined(sample)
    listed = isinstance(sample, list) and whole.ndim == latents.ndim + 1
    return (latents[:, :, None] if listed else latents).to(whole.dtype)


def _scaled(scheduler: Any, t: Any, latents: Tensor) -> Tensor:
    scaled: Tensor = scheduler.scale_model_input(latents, t)
    return scaled


def _check_corrector(scheduler: Any, steps: int) -> None:
    kept = getattr(scheduler, "disable_corrector", None)
    corrects = kept is not None and not set(range(steps - 1)) <= set(kept)
    if corrects or type(scheduler).__name__.startswith("SASolver"):
        raise ValueError(
            f"{type(scheduler).__name__} corrects each step's latents from those before, which "
            "would discard the update; use another scheduler, or for UniPC "
            "disable_corrector=list(range(steps))"
        )
