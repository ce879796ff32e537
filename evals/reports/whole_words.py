"""Tables that break no word, however narrow the terminal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

_ANY_WIDTH = 100_000


class WholeWords(Table):
    """A table whose columns are never narrower than their longest word.

    Where they don't fit side by side, each row becomes lines: its first cell, and under it the
    others, each after its column's header. A column's ``max_width`` bounds what counts as a word;
    a longer one folds.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(console, options)
        if widths is None:
            yield from self._lines()
            return
        fitted = copy.copy(self)
        fitted.columns = [
            replace(column, width=width) for column, width in zip(self.columns, widths, strict=True)
        ]
        yield from Table.__rich_console__(fitted, console, options)

    def fits(self, console: Console, options: ConsoleOptions) -> bool:
        """True if the columns have room side by side."""
        return self._widths(console, options) is not None

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int] | None:
        """Widths of the columns; None if there is no room for their longest words."""
        wide = options.update(width=_ANY_WIDTH)
        needs = [_needs(column, console, wide) for column in self.columns]
        frame = Measurement.get(console, wide, self).maximum - sum(need.maximum for need in needs)
        room = options.max_width - frame - sum(need.minimum for need in needs)
        if room < 0:
            return None
        # What is left goes to those that want little of it first, and then in equal parts.
        widths = [need.minimum for need in needs]
        wanting = sorted(range(len(needs)), key=lambda at: needs[at].span)
        for place, at in enumerate(wanting):
            more = min(needs[at].span, room // (len(wanting) - place))
            widths[at] += more
            room -= more
        return widths

    def _lines(self) -> Iterator[RenderableType]:
        yield Text(str(self.title or ""), style="table.title", overflow="fold")
        headers = [_flat(f"{column.header}: " if column.header else "") for column in self.columns]
        columns = [list(column.cells) for column in self.columns]
        for row, cells in zip(self.rows, zip(*columns, strict=True), strict=True):
            first, *others = map(_flat, cells)
            if first:
                yield first
            for header, cell in zip(headers[1:], others, strict=True):
                if cell:
                    yield Padding(header + cell, (0, 0, 0, 2))
            if row.end_section:
                yield ""
        yield ""


def _needs(column: Column, console: Console, wide: ConsoleOptions) -> Measurement:
    """The width of a column's longest word, or line if it may not wrap, and of its longest line."""
    found = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
    most = max(one.maximum for one in found)
    least = most if column.no_wrap else max(one.minimum for one in found)
    return Measurement(least, most).clamp(column.min_width, column.max_width)


def _flat(cell: RenderableType) -> Text:
    """A cell's text in one line; an address that goes on after a slash is whole again."""
    flat = Text(overflow="fold")
    for line in (cell if isinstance(cell, Text) else Text(str(cell))).split("\n"):
        flat.append("" if not flat or flat.plain.endswith("/") else " ").append_text(line)
    return flat
