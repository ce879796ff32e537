"""A bias on columns of the prompt, which PASTA and Prompt Highlighter point at spans with."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from regaze.hooks.biases import ColumnBias
from regaze.hooks.edits import Edit
from regaze.hooks.passes import Columns, GrowingMask, Pass
from regaze.interventions.lvlm.spans import IMAGE, Spans


class SpanEdit(Edit):
    """Adds to the logits of columns that spans point at, in every row that sees them.

    Args:
        spans: The spans.
        heads: By layer, a bool mask "H" of the heads to act in.
    """

    def __init__(self, spans: Spans, heads: Mapping[int, Tensor]) -> None:
        super().__init__(heads)
        # Spans of the image leave prompts without one alone.
        self.rows = "last" if set(spans) == {IMAGE} else "latest"
        self.heads = heads
        self.bias: GrowingMask | None = None

    @abstractmethod
    def biased(self, pass_: Pass) -> Tensor:
        """Bias of each column of the prompts so far: "B P"."""

    def begin(self, pass_: Pass) -> None:
        """Find the spans in a prompt."""
        if not pass_.decodes:
            bias = self.biased(pass_)
            self.bias = GrowingMask(bias.to(pass_.device)) if bool(bias.any()) else None

    def select(self, rows: Tensor) -> Edit:
        """The biases of some batch rows."""
        twin = copy.copy(self)
        twin.bias = None if self.bias is None else self.bias.select(rows)
        return twin

    def active(self, layer: int, pass_: Pass) -> bool:
        """True if the prompts hold a span."""
        return self.bias is not None

    def column_bias(self, layer: int, columns: Columns) -> ColumnBias | None:
        """The biases at a layer's keys."""
        if self.bias is None:
            return None
        bias = columns.of(self.bias).to(columns.image.device)
        return ColumnBias(self.heads[layer].to(bias.device), bias)
