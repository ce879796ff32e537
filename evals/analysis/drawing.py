"""Head maps as pictures: a row for each layer, a column for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from regaze.evals.analysis.maps import HeadMap, Pairs
from regaze.evals.outputs import whole

_CELL = 0.2
_LEAST = 1.9
_MOST = 5.0
_EMPTY = "#d8d8da"
_ACROSS = 3


def save(path: Path, maps: Sequence[HeadMap], framed: Pairs = ()) -> None:
    """Draw maps side by side; grey: not measured.

    Args:
        path: A PNG.
        maps: One or several.
        framed: Heads of the text tower that get a frame.

    Raises:
        OSError: It can't be written.
    """
    across = min(len(maps), _ACROSS)
    down = math.ceil(len(maps) / across)
    layers = max(len(one.values) for one in maps)
    heads = max(one.values.shape[1] for one in maps)
    wide, high = (min(_MOST, max(_LEAST, _CELL * n)) for n in (heads, layers))
    figure = Figure(
        figsize=(across * (wide + 1.25), down * (high + 0.85)), dpi=130, layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, one in zip(axes, maps, strict=False):
        _panel(figure, axis, one, framed if one.tower == "text" else ())
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    with whole(path) as part:
        figure.savefig(part, format="png")


def _panel(figure: Figure, axis: Axes, one: HeadMap, framed: Pairs) -> None:
    values = one.values.numpy()
    known = values[~np.isnan(values)]
    norm, colours = _scale(known)
    drawn = axis.imshow(
        values, cmap=mpl.colormaps[colours].with_extremes(bad=_EMPTY), norm=norm, aspect="auto"
    )
    for layer, head in framed:
        corner = (head - 0.5, layer - 0.5)
        axis.add_patch(mpl.patches.Rectangle(corner, 1, 1, fill=False, linewidth=1.4))
    layers, heads = values.shape
    axis.set_title(one.title, fontsize=8.5, loc="left")
    axis.set_xlabel("head", fontsize=7.5)
    axis.set_ylabel("layer", fontsize=7.5)
    axis.set_xticks(range(0, heads, 1 if heads <= 12 else 4))
    axis.set_yticks(range(0, layers, 1 if layers <= 12 else 4))
    axis.tick_params(labelsize=6.5, length=2)
    bar = figure.colorbar(drawn, ax=axis, pad=0.02)
    bar.set_label(one.unit, fontsize=7.5)
    bar.ax.tick_params(labelsize=6.5)


def _scale(known: Any) -> tuple[Normalize, str]:
    """Blue to red about zero where values have both signs; else from pale to dark."""
    if known.size and known.min() < 0:
        reach = float(np.abs(known).max())
        return TwoSlopeNorm(0.0, -reach, reach), "RdBu_r"
    low = float(known.min()) if known.size else 0.0
    high = float(known.max()) if known.size else 1.0
    return Normalize(min(low, 0.0) if low < 0.3 * high else low, high), "YlGnBu"
