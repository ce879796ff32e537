"""A-STAR: concepts keep apart from each other, and keep the places that they had.

Before a denoising step the latents move down the gradient of ``L_seg + L_ret``,

    L_seg = sum over pairs of concepts m, n:  sum min(A^m, A^n) / sum (A^m + A^n)
    L_ret = sum over concepts m:          1 - sum min(A^m, B^m) / sum (A^m + B^m)

with A^m the concept's map and B^m the region of high attention that it had in the step before, a
constant. Agarwal et al., arXiv 2306.14544, section 3; there is no released code. The ratios are
called IoU there, but lack "- intersection" in the denominator: L_seg is at most 1/2 a pair, and
L_ret between 1/2 and 1 a concept, never 0.

The paper leaves open what maps are made of, the threshold of B, step size and sampler. Defaults
here are those of Attend-and-Excite, which it compares with on the same prompts: its maps, steps and
layers. What else had to be decided is a field below, with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.works import Run
from regaze.interventions.base import register
from regaze.interventions.diffusion.concept_maps import (
    Columns,
    binarised,
    resized,
    retention_loss,
    segregation_loss,
    unit_range,
)
from regaze.interventions.diffusion.concepts import ConceptObjective, ConceptUpdate


@register
@dataclass(frozen=True)
class AStar(ConceptUpdate):
    """A-STAR: attention segregation and retention.

    Attributes:
        segregation: Weight of L_seg; 1 in the paper.
        retention: Weight of L_ret; 1 in the paper.
        threshold: B's bound: places above this share of the way from a map's smallest to
            its largest value, or "otsu". Half, because the paper shows B as a map's bright region.
        masks: Source of the maps that B is made of: the denoiser's own pass, "after" the
            update, which costs next to nothing and is what is denoised; or the gradient pass,
            "before" it, as a plain reading of the paper's algorithm has it.
        layout: Masks to use for B in all steps, the paper's layout mode: per concept rows of
            0 and 1, of any size; made to fit the maps' grid.
        scaled: Scale maps to [0, 1] in L_ret, because the minimum with a mask of 0 and 1 says
            little of maps that are far below 1.
    """

    name: ClassVar[str] = "a_star"
    summary: ClassVar[str] = "move latents so that concepts keep apart and keep their places"
    paper: ClassVar[str] = "arXiv 2306.14544"

    segregation: float = 1.0
    retention: float = 1.0
    threshold: float | str = 0.5
    masks: str = "after"
    layout: Any = None
    scaled: bool = True

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "segregation", self.segregation, low=0)
        check_number(self.name, "retention", self.retention, low=0)
        check_choice(self.name, "masks", self.masks, ("after", "before"))
        if self.threshold != "otsu":
            check_number(self.name, "threshold", self.threshold, low=0, high=1, why='or "otsu"')
        if self.layout is not None:
            try:
                ragged = torch.tensor(self.layout, device="cpu").ndim != 3
            except (TypeError, ValueError, RuntimeError):
                ragged = True
            if ragged:
                raise ValueError(
                    f"{self.name}: layout must be a mask per concept, each rows of 0 and 1 of the "
                    "same size"
                )

    def objective(self, run: Run, columns: Sequence[Columns]) -> ConceptObjective:
        """The objective that a run minimises."""
        for one in columns:
            if self.layout is not None and len(one.concepts) != len(self.layout):
                raise ValueError(
                    f"{self.name}: layout holds {len(self.layout)} masks for "
                    f"{len(one.concepts)} concepts"
                )
        return _Segregate(self, run.steps, columns)


class _Segregate(ConceptObjective):
    def __init__(self, spec: AStar, steps: int, columns: Sequence[Columns]) -> None:
        super().__init__(spec, steps, columns)
        self._spec = spec
        self.watches = spec.masks == "after" and spec.layout is None and spec.retention > 0
        self._masks: list[Tensor | None] = [None] * len(columns)
        self._next: list[Tensor | None] = list(self._masks)

    def loss(self, maps: Tensor) -> Tensor:
        if not self.watches:
            # Of the step before, as long as this step's first pass hasn't been seen.
            self._masks, self._next = self._next, self._binarised(maps)
        return super().loss(maps)

    def watch(self, maps: Tensor) -> None:
        self._masks = self._binarised(maps)

    def loss_of(self, sample: int, concepts: Tensor) -> Tensor:
        loss = self._spec.segregation * segregation_loss(concepts)
        masks = self._masks[sample]
        if self._spec.layout is not None:
            masks = resized(self._spec.layout, *concepts.shape[-2:]).to(concepts)
        if masks is None:  # The first step has no step before.
            return loss
        maps = unit_range(concepts) if self._spec.scaled else concepts
        return loss + self._spec.retention * retention_loss(maps, masks)

    def literal_loss(self, sample: int, concepts: Tensor) -> Tensor:
        loss = torch.zeros((), device=concepts.device, dtype=torch.float32)
        for m, one in enumerate(concepts):
            for other in concepts[:m]:
                ratio = torch.minimum(one, other).sum() / (one + other).sum()
                loss = loss + self._spec.segregation * ratio
        masks = self._masks[sample]
        if self._spec.layout is not None:
            masks = resized(self._spec.layout, *concepts.shape[-2:]).to(concepts)
        for one, mask in zip(concepts, () if masks is None else masks, strict=False):
            scaled = (one - one.min()) / (one.max() - one.min()) if self._spec.scaled else one
            ratio = torch.minimum(scaled, mask).sum() / (scaled + mask).sum()
            loss = loss + self._spec.retention * (1 - ratio)
        return loss

    def _binarised(self, maps: Tensor) -> list[Tensor | None]:
        threshold = self._spec.threshold
        found = self.concepts(maps.detach())
        return [None if one is None else binarised(one, threshold) for one in found]
