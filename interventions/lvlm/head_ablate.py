"""Take chosen heads out, a tool for experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice
from regaze.hooks.literal import MapForm, OutputForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import HEADS, Heads, Tool, acted_on


@register
@dataclass(frozen=True)
class HeadAblate(Tool):
    """Take chosen heads out, to see what they are for.

    Attributes:
        to: "zero": they put out nothing. "uniform": they attend to all that they see alike, which
            keeps the size of what they put out (a milder change than zero).
        heads: Heads to take out: pairs (layer, head), or "all"; none by default.
    """

    name: ClassVar[str] = "headablate"
    summary: ClassVar[str] = "tool: take chosen heads out"
    paper: ClassVar[str] = "none: a tool for experiments"
    wants: ClassVar[str] = HEADS

    heads: Heads = ()
    to: Literal["zero", "uniform"] = "zero"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_choice(self.name, "to", self.to, ("zero", "uniform"))

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Outputs, or logits, of zero."""
        return torch.zeros_like(values)

    def idle(self) -> HeadAblate:
        """The same without heads."""
        return replace(self, heads=())

    def literal(self) -> MapForm | OutputForm:
        """``o = 0``, or the same logit for all columns that are seen."""
        form = MapForm if self.to == "uniform" else OutputForm
        return form(self.layers or (), lambda x, m: x.masked_fill(acted_on(self, m, x), 0.0))
