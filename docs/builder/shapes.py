"""A few shapes that the drawings of methods are made of, as SVG that follows light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

STYLE = """
.rg text { font: 12px system-ui, sans-serif; fill: #57606a }
.rg .cell { fill: #d7dbe0 } .rg .more { fill: #d9480f } .rg .less { fill: #1c7ed6 }
.rg .none { fill: none; stroke: #b6bdc5; stroke-width: 0.6 }
.rg .line, .rg .box { stroke: #57606a; fill: none }
@media (prefers-color-scheme: dark) {
  .rg text { fill: #c9d1d9 } .rg .cell { fill: #3d444d } .rg .more { fill: #ff922b }
  .rg .less { fill: #4dabf7 } .rg .none { stroke: #545d68 } .rg .line, .rg .box { stroke: #c9d1d9 }
}
"""
"""Colours: orange gains, blue loses, grey stays, an outline is hidden or absent."""

Mark = Callable[[int, int], str]
"""From a row and a column to the class of its cell; empty for nothing."""


def svg(width: float, height: float, *parts: str, title: str) -> str:
    """A picture of its own, with a title for readers that don't see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
        + "".join(parts)
        + "</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def grid(x: float, y: float, rows: int, columns: int, size: float, mark: Mark) -> str:
    """Cells, row by row."""
    cells = []
    for row in range(rows):
        for column in range(columns):
            if kind := mark(row, column):
                cells.append(
                    f'<rect class="{kind}" x="{x + column * size:g}" y="{y + row * size:g}" '
                    f'width="{size - 1.5:g}" height="{size - 1.5:g}" rx="1.5"/>'
                )
    return "".join(cells)


def box(x: float, y: float, width: float, height: float, *lines: str) -> str:
    """A box with centred lines of text."""
    middle = y + height / 2 + 4 - 8 * (len(lines) - 1)
    return (
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
        + (
            "".join(
                text(x + width / 2, middle + 16 * n, line, "middle") for n, line in enumerate(lines)
            )
        )
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head at its end, to the right or downwards."""
    head = (
        f"M{x2 - 6:g} {y2 - 4:g}L{x2:g} {y2:g}L{x2 - 6:g} {y2 + 4:g}"
        if x2 > x1
        else f"M{x2 - 4:g} {y2 - 6:g}L{x2:g} {y2:g}L{x2 + 4:g} {y2 - 6:g}"
    )
    return f'<path class="line" d="M{x1:g} {y1:g}L{x2:g} {y2:g}{head}"/>'


def spread(x: float, size: float, groups: Sequence[tuple[str, int]]) -> list[tuple[str, float]]:
    """Names of groups of columns, and the middle of each."""
    found, at = [], 0
    for name, count in groups:
        found.append((name, x + (at + count / 2) * size))
        at += count
    return found
