"""Scores of heads as a picture: a row per layer, a column per head, a panel per round."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from regaze.evals.outputs import whole
from regaze.evals.pictures.head_hunter import Found

_CELL = 0.24
_LEAST = 1.5
_EMPTY = "#d8d8da"


def save_heat(path: Path, found: Found, objective: str) -> None:
    """Draw what each head did to the score, against the heads chosen before its round.

    Chosen heads are framed and numbered by rank; grey: chosen before, or no such head.

    Args:
        path: A PNG.
        found: The heads that the search found.
        objective: The score's meaning, for the scale's label.

    Raises:
        OSError: It can't be written.
    """
    layers = sorted({layer for layer, _ in found.rounds[0].scores})
    n_heads = 1 + max(head for _, head in found.rounds[0].scores)
    changes = [
        {head: score - one.before for head, score in one.scores.items()} for one in found.rounds
    ]
    reach = max((abs(v) for change in changes for v in change.values()), default=0.0) or 1.0
    norm = TwoSlopeNorm(0.0, -reach, reach)
    colours = mpl.colormaps["RdBu"].with_extremes(bad=_EMPTY)
    panel = (max(_LEAST, _CELL * n_heads), max(_LEAST, _CELL * len(layers)))
    size = (len(changes) * (panel[0] + 0.55) + 1.3, panel[1] + 1.1)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots(1, len(changes), squeeze=False)[0]
    for number, (axis, one, change) in enumerate(zip(axes, found.rounds, changes, strict=True)):
        values = np.full((len(layers), n_heads), np.nan)
        for (layer, head), value in change.items():
            values[layers.index(layer), head] = value
        drawn = axis.imshow(values, cmap=colours, norm=norm)
        for rank, (layer, head) in enumerate(one.chosen, 1):
            row = layers.index(layer)
            axis.add_patch(
                mpl.patches.Rectangle((head - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.6)
            )
            dark = abs(change[layer, head]) > 0.6 * reach
            colour = "white" if dark else "black"
            axis.text(head, row, str(rank), ha="center", va="center", fontsize=7, color=colour)
        axis.set_title(f"round {number + 1}, from {one.before:.3g}", fontsize=9)
        axis.set_xlabel("head", fontsize=8)
        axis.set_xticks(range(0, n_heads, 1 if n_heads <= 12 else 4))
        step = 1 if len(layers) <= 30 else 4
        axis.set_yticks(range(0, len(layers), step), [f"L{layer}" for layer in layers[::step]])
        axis.tick_params(labelsize=7, length=2)
    bar = figure.colorbar(drawn, ax=axes, pad=0.02, shrink=0.8)
    bar.set_label(f"change of {objective}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    with whole(path) as part:
        figure.savefig(part, format="png")
