"""Add to the logits of some columns, a tool for experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import ColumnTool, acted_on


@register
@dataclass(frozen=True)
class LogitBias(ColumnTool):
    """Add a number to the logits of some columns.

    Attributes:
        bias: Number added to scaled logits; 0 is a no-op.
    """

    name: ClassVar[str] = "logitbias"
    summary: ClassVar[str] = "tool: add to the logits of some columns"
    paper: ClassVar[str] = "none: a tool for experiments"
    wants: ClassVar[str] = "bias to another number than 0, such as 1"

    bias: float = 0.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "bias", self.bias, -1000, 1000)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add."""
        return values + self.bias * self.at(columns)

    def idle(self) -> LogitBias:
        """The same with nothing added."""
        return replace(self, bias=0.0)

    def literal(self) -> MapForm:
        """``z + bias`` on the columns."""

        def edit(z: Tensor, m: Map) -> Tensor:
            return torch.where(acted_on(self, m, z) & self.at(m), z + self.bias, z)

        return MapForm(self.layers or (), edit)
