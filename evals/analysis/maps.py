"""A number for each head: running means, and maps of layers by heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Pairs = tuple[tuple[int, int], ...]
"""Pairs (layer, head), as methods take them in their field ``heads``."""


@dataclass(frozen=True)
class HeadMap:
    """A measurement of each head.

    Attributes:
        name: Short, unique in an analysis: the name of its column in tables.
        title: The measurement's name for readers.
        unit: The values' unit.
        values: "L H" float64; NaN where a layer doesn't attend or a head wasn't measured.
        tower: The tower that the heads are of.
        about: The number's meaning, in a sentence or two, with its source.
        notes: Numbers that go with the whole map, by what they are.
    """

    name: str
    title: str
    unit: str
    values: Tensor
    tower: Literal["text", "vision"] = "text"
    about: str = ""
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def signed(self) -> bool:
        """True if any value is below zero."""
        return bool((self.values < 0).any())

    def top(self, count: int) -> Pairs:
        """The heads with the highest values; ties go to the earlier layer, then the lower head.

        Raises:
            ValueError: So many weren't measured.
        """
        measured = int((~self.values.isnan()).sum())
        if not 0 < count <= measured:
            raise ValueError(
                f"{count} heads were asked for, and {self.name} was measured of {measured}"
            )
        flat = self.values.nan_to_num(nan=-torch.inf).flatten()
        order: list[int] = flat.argsort(descending=True, stable=True)[:count].tolist()
        return tuple(divmod(at, self.values.shape[1]) for at in order)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able; NaN is None."""
        rows = [[None if v != v else v for v in row] for row in self.values.tolist()]
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "tower": self.tower,
            "about": self.about,
            "notes": dict(self.notes),
            "values": rows,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> HeadMap:
        """The map that `to_dict` made JSON-able."""
        rows = [[torch.nan if v is None else v for v in row] for row in given["values"]]
        values = torch.tensor(rows, dtype=torch.float64)
        return cls(**{**given, "values": values})


class Means:
    """Means of each head over whatever is added, layer by layer."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, Tensor] = {}

    def add(self, layer: int, values: Tensor) -> None:
        """Add "... H" values; NaN is nothing."""
        flat = values.detach().cpu().double().flatten(0, -2)
        known = ~flat.isnan()
        zero = torch.zeros(flat.shape[1], dtype=torch.float64)
        self._sums[layer] = self._sums.get(layer, zero) + flat.nan_to_num(0.0).sum(0)
        self._counts[layer] = self._counts.get(layer, zero) + known.sum(0)

    def table(self, n_layers: int, n_heads: int) -> Tensor:
        """The means, "L H" float64; NaN where nothing was added."""
        found = torch.full((n_layers, n_heads), torch.nan, dtype=torch.float64)
        for layer, sums in self._sums.items():
            found[layer] = sums / self._counts[layer]
        return found

    @property
    def empty(self) -> bool:
        """True if nothing was added."""
        return not any(bool(one.any()) for one in self._counts.values())


def union(maps: Sequence[HeadMap], tower: str) -> list[tuple[int, int]]:
    """All heads of a tower that any map knows, layer by layer."""
    known = [~one.values.isnan() for one in maps if one.tower == tower]
    if not known:
        return []
    found: list[list[int]] = torch.stack(known).any(0).nonzero().tolist()
    return [(layer, head) for layer, head in found]
