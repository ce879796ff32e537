"""A Hub of a few rows, as much of the package datasets as is used."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

Row = dict[str, Any]


class Table:
    """A `datasets.Dataset`: images are PNG files."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.column_names = list(self.rows[0])

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]

    def remove_columns(self, name: str) -> Table:
        return Table([{k: v for k, v in row.items() if k != name} for row in self.rows])

    def cast_column(self, name: str, feature: Any) -> Table:
        return Table([{**row, name: _file(row[name])} for row in self.rows])


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: Mapping[str, Sequence[Row]]) -> list[Any]:
    """Put it in the place of the package; gives the ids and configurations asked for."""
    asked = []

    def load_dataset(dataset: str, *, name: str | None, split: str) -> Table:
        asked.append((dataset, name))
        if split not in splits:
            raise ValueError(f"Unknown split {split!r}.")
        return Table(splits[split])

    module = SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def _file(image: Image.Image | None) -> Row | None:
    if image is None:
        return None
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
