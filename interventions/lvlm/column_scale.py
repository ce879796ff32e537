"""Scale the attention weights of some columns, a tool for experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.literal import Map, MapForm, reweighed
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import ColumnTool, acted_on

_TINY = 1e-30


@register
@dataclass(frozen=True)
class ColumnScale(ColumnTool):
    """Multiply the attention weights of some columns, and make rows sum to 1 again.

    Attributes:
        factor: Factor of the weights; 1 is a no-op, 0 hides the columns (from a row that sees
            no others it hides nothing).
    """

    name: ClassVar[str] = "columnscale"
    summary: ClassVar[str] = "tool: scale the weights of some columns"
    paper: ClassVar[str] = "none: a tool for experiments"
    wants: ClassVar[str] = "factor to another number than 1, such as 2"

    factor: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "factor", self.factor, 0, 1e6)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add the factor's logarithm to the logits."""
        return values + math.log(max(self.factor, _TINY)) * self.at(columns).to(values.dtype)

    def idle(self) -> ColumnScale:
        """The same with a factor of 1."""
        return replace(self, factor=1.0)

    def literal(self) -> MapForm:
        """``a_j = factor a_j`` on the columns; the softmax divides by the row's sum."""

        def edit(z: Tensor, m: Map) -> Tensor:
            a = z.double().masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)
            new = torch.where(self.at(m), max(self.factor, _TINY) * a, a)
            return torch.where(acted_on(self, m, z), reweighed(z, a, new).float(), z)

        return MapForm(self.layers or (), edit)
