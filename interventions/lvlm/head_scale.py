"""Scale the outputs of chosen heads, a tool for experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.literal import OutputForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import Tool, acted_on


@register
@dataclass(frozen=True)
class HeadScale(Tool):
    """Multiply the outputs of chosen heads.

    Attributes:
        factor: Factor; 1 is a no-op, 0 silences.
    """

    name: ClassVar[str] = "headscale"
    summary: ClassVar[str] = "tool: scale the outputs of chosen heads"
    paper: ClassVar[str] = "none: a tool for experiments"
    wants: ClassVar[str] = "factor to another number than 1, such as 0"

    factor: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "factor", self.factor, -100, 100)

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Scale."""
        return self.factor * values

    def idle(self) -> HeadScale:
        """The same with a factor of 1."""
        return replace(self, factor=1.0)

    def literal(self) -> OutputForm:
        """``factor * o`` in the chosen heads and rows."""
        return OutputForm(
            self.layers or (), lambda o, m: torch.where(acted_on(self, m, o), self.factor * o, o)
        )
