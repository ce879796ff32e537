"""Attention over pictures, layer by layer and head by head, as an HTML element to look through.

The element ``<regaze-attention>`` holds all that it shows and asks no network; `SCRIPT` defines it,
once a page. Numbers are stored in a byte each, on a scale of their head's own, so that a faint head
is as sharp as a strong one; what share of its attention a head gives is stored as it is.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.reports.plots import data_uri

SCRIPT = (Path(__file__).parent / "templates" / "attention.js").read_text(encoding="utf-8")
"""JavaScript that defines the element."""

_LARGEST = 448


@dataclass(frozen=True)
class Heads:
    """The heads whose maps are shown, in order.

    Attributes:
        layers: Names of the layers, from the first.
        counts: Heads of each.
    """

    layers: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One condition's attention to a picture.

    Attributes:
        title: The condition.
        picture: The picture that was looked at, or painted.
        looks: The readers: the whole answer and its tokens, or the prompt's words.
        maps: "looks heads rows cols", attention of each head (all layers' in order) per patch.
        shares: "looks heads", what share of each head's attention that is in all; for words in the
            prompt of a painting: the mean share that a patch gives them.
    """

    title: str
    picture: Image.Image
    looks: tuple[str, ...]
    maps: NDArray[np.float32]
    shares: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Bytes that its maps take in a page."""
        return self.maps.size * 4 // 3


def element(heads: Heads, sides: Sequence[Side], unit: str) -> str:
    """The element, as HTML.

    Args:
        heads: The heads that the maps belong to.
        sides: The maps side by side; all on one scale.
        unit: The whole that shares are of, to follow a percentage: "of attention on the picture".

    Raises:
        ValueError: A side's maps aren't those of the heads.
    """
    for side in sides:
        if side.maps.shape[:2] != (len(side.looks), sum(heads.counts)):
            raise ValueError(
                f"{side.title}: maps {side.maps.shape} are not {len(side.looks)} looks of "
                f"{sum(heads.counts)} heads"
            )
    about = {
        "layers": heads.layers,
        "heads": heads.counts,
        "unit": unit,
        "sides": [_side(side) for side in sides],
    }
    data = html.escape(json.dumps(about, ensure_ascii=False, separators=(",", ":")))
    return f'<regaze-attention about="{data}"></regaze-attention>'


def page(title: str, elements: Sequence[str]) -> str:
    """A page of its own about some elements."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>:root{color-scheme:light dark}body{font:1rem system-ui,sans-serif;"
        "max-width:60rem;margin:auto;padding:1.5rem}</style>\n"
        f"<script>{SCRIPT}</script>\n<h1>{html.escape(title)}</h1>\n" + "\n".join(elements) + "\n"
    )


def _side(side: Side) -> dict[str, Any]:
    tops = side.maps.max((2, 3))
    scale = np.where(tops > 0, tops, 1)[..., None, None]
    levels = np.round(255 * side.maps / scale).astype(np.uint8)
    picture = side.picture.convert("RGB")
    picture.thumbnail((_LARGEST, _LARGEST))
    return {
        "title": side.title,
        "picture": data_uri(picture),
        "looks": side.looks,
        "rows": side.maps.shape[2],
        "cols": side.maps.shape[3],
        "levels": base64.b64encode(levels.tobytes()).decode(),
        "tops": _short(tops),
        "shares": _short(side.shares),
    }


def _short(values: NDArray[np.float32]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
