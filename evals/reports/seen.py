"""A model's captured attention, head by head, as maps for the viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.evals.reports.viewer import Heads
from regaze.hooks.text_capture import Capture

Maps = NDArray[np.float32]


def head_maps(
    seen: Capture, inputs: Mapping[str, Any], sample: int = 0, before: int | None = None
) -> tuple[Heads, Maps]:
    """Attention of each captured row on the first image: "rows heads rows cols".

    A row that ran twice (a method may look ahead, or run the last row again) counts as it ran last.

    Args:
        seen: The captured attention of all heads.
        inputs: The processor's output for the batch.
        sample: Batch row.
        before: Leave out rows from this column on.

    Raises:
        ValueError: Nothing was captured, or the image's grid can't be known.
    """
    grid = seen.grid(sample, 0, inputs)
    layers: dict[int, dict[int, Tensor]] = {}
    for one in seen.captured:
        picked = one.rows[sample][one.valid[sample]].tolist()
        weights = one.weights[sample][:, one.valid[sample]]  # "H R K"
        keys = grid - one.offset
        inside = (keys >= 0) & (keys < weights.shape[-1])
        on_image = weights[..., keys.clamp(0, weights.shape[-1] - 1)] * inside
        rows = layers.setdefault(one.layer, {})
        rows |= {row: on_image[:, i] for i, row in enumerate(picked)}
    order = sorted(layers)
    shared = sorted(set.intersection(*(set(rows) for rows in layers.values())))
    shared = [row for row in shared if before is None or row < before]
    if not shared:
        raise ValueError("no row that chooses a token was captured")
    stacked = [torch.cat([layers[layer][row] for layer in order]) for row in shared]
    counts = tuple(len(next(iter(layers[layer].values()))) for layer in order)
    heads = Heads(tuple(f"layer {layer}" for layer in order), counts)
    found: Maps = torch.stack(stacked).float().numpy()
    return heads, found


def within(budget: int, maps: Maps, names: Sequence[str]) -> tuple[tuple[str, ...], Maps]:
    """The mean over rows, and the rows themselves as far as they fit.

    Args:
        budget: Bytes that may be kept; the mean always is.
        maps: "rows heads rows cols".
        names: The tokens that rows chose; fewer names leave the other rows out.
    """
    each = maps[0].size
    kept = max(0, min(len(names), len(maps), budget // each - 1)) if len(maps) > 1 else 0
    mean = maps.mean(0, keepdims=True)
    return ("whole answer", *names[:kept]), np.concatenate([mean, maps[:kept]])
