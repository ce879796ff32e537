"""Add a vector to the outputs of chosen heads, a tool for experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, OutputForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import EditOutputs, VectorTool, acted_on


@register
@dataclass(frozen=True)
class Steer(VectorTool):
    """Add a vector to the outputs of chosen heads.

    Attributes:
        strength: Factor of the vectors; 0 is a no-op.
    """

    name: ClassVar[str] = "steer"
    summary: ClassVar[str] = "tool: add a vector to the outputs of chosen heads"
    paper: ClassVar[str] = "none: a tool for experiments"

    strength: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number(self.name, "strength", self.strength, -1000, 1000)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if nothing is added."""
        acts = self.vectors and self.strength
        return EditOutputs(self, self.layers or () if acts else ())

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Add."""
        return values + self.strength * self.vector(layer, values)

    def idle(self) -> Steer:
        """The same at strength zero."""
        return replace(self, strength=0.0)

    def literal(self) -> OutputForm:
        """``o + strength * v`` in the chosen heads and rows."""

        def edit(o: Tensor, m: Map) -> Tensor:
            return torch.where(acted_on(self, m, o), o + self.strength * self.vector(m.layer, o), o)

        return OutputForm(self.layers or () if self.vectors else (), edit)
