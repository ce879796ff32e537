"""Put another run's outputs into chosen heads, a tool for experiments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.literal import Map, OutputForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import register
from regaze.interventions.lvlm.tool import VectorTool, acted_on


@register
@dataclass(frozen=True)
class Patch(VectorTool):
    """Put outputs of another run into chosen heads: at every edited row the same ones.

    To see what one row is good for, take ``rows="last"`` and look at the next token alone.
    """

    name: ClassVar[str] = "patch"
    summary: ClassVar[str] = "tool: put another run's outputs into chosen heads"
    paper: ClassVar[str] = "none: a tool for experiments"

    rows: Literal["text", "last"] = "last"

    def edit(self, layer: int, values: Tensor, columns: Columns) -> Tensor:
        """Replace."""
        return self.vector(layer, values).expand_as(values)

    def idle(self) -> Patch:
        """The same without vectors."""
        return replace(self, vectors=())

    def literal(self) -> OutputForm:
        """``o = v`` in the chosen heads and rows."""

        def edit(o: Tensor, m: Map) -> Tensor:
            return torch.where(acted_on(self, m, o), self.vector(m.layer, o), o)

        return OutputForm(self.layers or () if self.vectors else (), edit)
