"""Pictures for reports: forest plots and bars as inline SVG, attention maps as transparent PNG."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_PIXELS = 72  # matplotlib's SVG has 72 units an inch
_WIDTH = 330
_ROW = 26
_SERIES = 8
_BAR = 10
# Stand-ins for the page's CSS variables, so that a plot follows its light or dark scheme.
_COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "better": "#030303",
    "worse": "#040404",
    "moved": "#050505",
    "open": "#060606",
    **{f"series-{i}": f"#07070{i}" for i in range(_SERIES)},
}


@dataclass(frozen=True)
class Whisker:
    """One row of a forest plot, in the units of the axis; controls stand apart."""

    label: str
    value: float
    low: float
    high: float
    verdict: str
    control: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval, in the units of the axis; NaN where there is none."""

    value: float
    low: float
    high: float


def forest(key: str, name: str, unit: str, rows: Sequence[Whisker]) -> str:
    """Changes against the unedited model with their intervals, as an SVG element.

    Rows whose interval excludes zero are filled and coloured, the others hollow, so that the plot
    reads without colours too.

    Args:
        key: Tells this plot from the others on its page.
        name: The name of the changed metric.
        unit: Label of the axis.
        rows: From top to bottom.
    """
    gap = 0.6 if len({row.control for row in rows}) > 1 else 0.0
    places = [y + gap * row.control for y, row in enumerate(rows)]
    with _style(key):
        figure, axes = _figure(_ROW * (len(rows) + gap), name)
        axes.axvline(0, color=_COLOURS["faint"], linewidth=1, zorder=0)
        if gap:
            edge = next(y for y, row in zip(places, rows, strict=True) if row.control) - 0.8
            axes.axhline(edge, color=_COLOURS["faint"], linewidth=0.6, linestyle=":", zorder=0)
        for y, row in zip(places, rows, strict=True):
            colour = _COLOURS[row.verdict]
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.6, zorder=1)
            hollow = row.verdict == "open"
            axes.plot(
                row.value,
                y,
                "s" if row.control else "o",
                markersize=5.5 if row.control else 6.5,
                markeredgewidth=1.6,
                markeredgecolor=colour,
                markerfacecolor="none" if hollow else colour,
                zorder=2,
            )
        reach = max([abs(end) for row in rows for end in (row.low, row.high)] + [1e-9]) * 1.12
        axes.set_xlim(-reach, reach)
        axes.set_ylim(len(rows) + gap - 0.5, -0.5)
        _label_rows(axes, places, [row.label for row in rows], unit)
        return _svg(figure, f"Forest plot: {key}")


def bars(
    key: str, name: str, unit: str, categories: Sequence[str], series: Sequence[Sequence[Bar]]
) -> str:
    """Values by category, one bar per system with its 95 % interval, as an SVG element.

    Args:
        key: Tells this plot from the others on its page.
        name: The name of the values.
        unit: Label of the axis.
        categories: From top to bottom.
        series: For each system, a bar per category; coloured ``series-0``, ``series-1``, ...
    """
    step = len(series) + 1.2
    with _style(key):
        figure, axes = _figure(_BAR * step * len(categories), name)
        for place, system in enumerate(series):
            ys = [step * i + place for i in range(len(categories))]
            colour = _COLOURS[f"series-{place % _SERIES}"]
            axes.barh(ys, [bar.value for bar in system], height=0.82, color=colour)
            for y, bar in zip(ys, system, strict=True):
                axes.plot([bar.low, bar.high], [y, y], color=_COLOURS["ink"], linewidth=0.9)
        ends = [
            end for system in series for bar in system for end in (bar.low, bar.high, bar.value)
        ]
        known = [end for end in ends if end == end]
        axes.set_xlim(min([0.0, *known]), max([0.0, *known]) * 1.04 or 1.0)
        axes.set_ylim(step * len(categories) - 1.1, -1.1)
        centres = [step * i + (len(series) - 1) / 2 for i in range(len(categories))]
        _label_rows(axes, centres, categories, unit)
        return _svg(figure, f"Bars: {key}")


def heat_layers(heats: Mapping[str, NDArray[np.float32]]) -> dict[str, str]:
    """Attention maps as data URIs, transparent where there is little; all on one scale.

    Args:
        heats: Maps "rows cols" of attention mass.
    """
    top = max(float(heat.max()) for heat in heats.values()) or 1.0
    colours = mpl.colormaps["inferno"]
    layers = {}
    for name, heat in heats.items():
        level = heat / top
        rgba = colours(0.25 + 0.75 * level)
        rgba[..., 3] = 0.9 * level**0.7
        layers[name] = data_uri(Image.fromarray((rgba * 255).round().astype(np.uint8)))
    return layers


def data_uri(image: Image.Image) -> str:
    """An image inside a URI: PNG, or JPEG where a PNG would be large."""
    photo = image.mode == "RGB" and image.width * image.height > 128 * 128
    kind = "jpeg" if photo else "png"
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if photo else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _style(key: str) -> AbstractContextManager[None]:
    """Settings by which text stays text, and the same plot gets the same ids."""
    return mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 10.5})


def _figure(rows: float, name: str) -> tuple[Figure, Axes]:
    """A figure whose rows take so many pixels, with room for labels, axis and title."""
    height = rows + 58
    figure = Figure(figsize=(_WIDTH / _PIXELS, height / _PIXELS))
    figure.patch.set_alpha(0)
    left = 0.33
    axes = figure.add_axes((left, 34 / height, 0.97 - left, rows / height), facecolor="none")
    figure.text(0.01, 1 - 5 / height, name, va="top", color=_COLOURS["ink"], fontweight="bold")
    return figure, axes


def _label_rows(axes: Axes, places: Sequence[float], labels: Sequence[str], unit: str) -> None:
    axes.set_yticks(places, [_short(label) for label in labels])
    axes.tick_params(axis="y", length=0, pad=6, labelcolor=_COLOURS["ink"])
    axes.tick_params(axis="x", color=_COLOURS["faint"], labelcolor=_COLOURS["ink"])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(unit, color=_COLOURS["ink"])
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(_COLOURS["faint"])


def _short(label: str) -> str:
    # Conditions of one method mostly differ at their ends.
    return label if len(label) <= 16 else f"{label[:5]}…{label[-9:]}"


def _svg(figure: Figure, title: str) -> str:
    """The SVG element by itself, scalable, named, and with the page's colours and font."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # In a page every svg element would repeat these ids; those of references are hashes.
    svg = re.sub(r' id="[a-z\d.]+_\d+"| xmlns(:\w+)?="[^"]*"|font-family: [^;"]*;', "", svg)
    svg = svg.replace("xlink:href", "href")
    for variable, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1).strip()
