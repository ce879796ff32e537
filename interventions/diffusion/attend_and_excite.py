"""Attend-and-Excite: every concept of the prompt gets a place that attends to it.

Before a denoising step the latents move down the gradient of

    loss = max over concepts of max(0, 1 - peak of the concept's map)

and at three steps they are moved until the peak of the weakest concept is high enough, before
denoising goes on. Chefer et al., arXiv 2301.13826; released code
yuval-alaluf/Attend-and-Excite@163efdf, with whose settings the latents are those of diffusers'
deprecated ``StableDiffusionAttendAndExcitePipeline``.

Unlike these it runs on batches, with and without classifier-free guidance, and scales the latents
as the scheduler says before the gradient pass, too (the code feeds them as they are, which for DDIM
and PNDM is the same).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number, shown
from regaze.hooks.diffusion.gradients import Descent
from regaze.hooks.diffusion.works import Run
from regaze.interventions.base import register
from regaze.interventions.diffusion.concept_maps import Columns, excite_loss
from regaze.interventions.diffusion.concepts import ConceptObjective, ConceptUpdate


@register
@dataclass(frozen=True)
class AttendAndExcite(ConceptUpdate):
    """Attend-and-Excite.

    Attributes:
        stop: 0.5, the first 25 of 50 steps, as in the code.
        refine: At which shares of the steps latents are moved until every peak is at least how
            high: ``{0: 0.05, 0.2: 0.5, 0.4: 0.8}``, the code's steps 0, 10 and 20 of 50; also
            written ``"0:0.05+0.2:0.5+0.4:0.8"``, which is how it is kept. Empty: never.
        refinements: Most updates in one step.
    """

    name: ClassVar[str] = "attend_and_excite"
    summary: ClassVar[str] = "move latents until every concept has a place that attends to it"
    paper: ClassVar[str] = "arXiv 2301.13826"

    stop: float = 0.5
    refine: Any = "0:0.05+0.2:0.5+0.4:0.8"
    refinements: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.refine, Mapping):
            pairs = "+".join(f"{float(k):g}:{float(v):g}" for k, v in self.refine.items())
            object.__setattr__(self, "refine", pairs)
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        if type(self.refinements) is not int or self.refinements < 0:
            raise ValueError(
                f"{self.name}: refinements must be a whole number from 0 on, got "
                f"{shown(self.refinements)}"
            )
        for share, peak in self.thresholds():
            check_number(self.name, "a share in refine", share, low=0, high=1)
            check_number(self.name, "a peak in refine", peak, low=0, high=1)

    def thresholds(self) -> list[tuple[float, float]]:
        """Pairs of share of the steps and peak."""
        try:
            pairs = [pair.split(":") for pair in filter(None, str(self.refine).split("+"))]
            return [(float(share), float(peak)) for share, peak in pairs]
        except ValueError:
            raise ValueError(
                f'{self.name}: refine must look like {{0: 0.05, 0.2: 0.5}} or "0:0.05+0.2:0.5", '
                f"got {self.refine!r}"
            ) from None

    def objective(self, run: Run, columns: Sequence[Columns]) -> ConceptObjective:
        """The objective that a run minimises."""
        return _Excite(self, run.steps, columns)


class _Excite(ConceptObjective):
    def __init__(self, spec: AttendAndExcite, steps: int, columns: Sequence[Columns]) -> None:
        super().__init__(spec, steps, columns)
        self._limit = spec.refinements
        self._peaks = {round(share * steps): peak for share, peak in spec.thresholds()}

    def plan(self, step: int) -> Descent | None:
        usual = super().plan(step)
        if step not in self._peaks:
            return usual
        plan = usual or Descent(self.size(step), update=False)
        return replace(plan, target=max(0.0, 1 - self._peaks[step]), limit=self._limit)

    def loss_of(self, sample: int, concepts: Tensor) -> Tensor:
        return excite_loss(concepts)

    def literal_loss(self, sample: int, concepts: Tensor) -> Tensor:
        return torch.stack([torch.relu(1 - one.max()) for one in concepts]).max()
