"""An edit that ablates another head in each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention

To = Literal["zero", "uniform"]
"""The fate of a head: it puts out nothing, or attends alike to all that it sees."""


class HeadPerRow:
    """Ablates one head in each batch row, as told; what `attach` takes as a method.

    Attributes:
        heads: The head of each row; None: none there.
    """

    label, acts_on = "head ablation", Intervention.acts_on

    def __init__(self, layers: Sequence[int], to: To) -> None:
        self.heads: Sequence[tuple[int, int] | None] = ()
        self._layers, self._to = layers, to

    def resolve(self, host: Host) -> HeadPerRow:
        """Itself: nothing in it depends on the model."""
        return self

    def bind(self, host: Host) -> Edit:
        """The edit."""
        return (_Zero if self._to == "zero" else _Uniform)(self, self._layers)

    def acts(self, layer: int) -> bool:
        """True if any row's head is in a layer."""
        return any(head is not None and head[0] == layer for head in self.heads)

    def mask(self, layer: int, like: Tensor) -> Tensor:
        """The heads of each row that are out: bool "B H 1 1" for values "B H . ."."""
        heads = [head[1] if head is not None and head[0] == layer else -1 for head in self.heads]
        out = torch.tensor(heads, device=like.device)[:, None] == torch.arange(
            like.shape[1], device=like.device
        )
        return out[:, :, None, None]


class _Ablating(Edit):
    rows = "text"

    def __init__(self, told: HeadPerRow, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.given = told

    def select(self, rows: Tensor) -> Edit:
        return self

    def active(self, layer: int, pass_: Any) -> bool:
        return self.given.acts(layer)


class _Zero(_Ablating):
    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        values = out.transpose(1, 2)
        return values.masked_fill(self.given.mask(layer, values), 0.0).transpose(1, 2)


class _Uniform(_Ablating):
    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return logits.masked_fill(self.given.mask(layer, logits), 0.0)
