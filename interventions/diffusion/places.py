"""Places in a picture, as methods are given them: boxes in shares of it, and masks.

Specs are JSON, so a mask that is given as an array is kept in a file under its hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regaze.hooks.checks import reason, shown
from regaze.interventions.diffusion.masks import load_npy
from regaze.interventions.diffusion.regional import on_grid

_FINE = (256, 256)
"""Rows and columns on which two boxes of unlike form are compared."""


def check_place(method: str, place: Any) -> None:
    """Check that a place is a box in shares of the picture, or names a file.

    Raises:
        ValueError: It is something else, or a box that lies outside of the picture.
    """
    if isinstance(place, str):
        return
    box = isinstance(place, tuple) and len(place) == 4
    for number in place if box else (None,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(
                f"{method}: {shown(place)} is no place: give a box (left, top, right, bottom) in "
                "shares of the picture, a mask (rows, columns), or a file"
            )
    left, top, right, bottom = place
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"{method}: box {place} isn't (left, top, right, bottom) in shares of the picture: "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1"
        )


def stored(place: Any) -> Any:
    """A place that JSON can hold: a mask is kept in ``$XDG_CACHE_HOME/regaze/masks``."""
    if isinstance(place, (str, Path)):
        return str(place)
    if isinstance(place, (list, tuple)) and len(place) == 4 and not hasattr(place[0], "__len__"):
        return tuple(place)
    mask = np.asarray(place.cpu() if isinstance(place, Tensor) else place)
    if mask.ndim != 2 or mask.dtype == object or not mask.size:
        return place
    inside = np.ascontiguousarray(mask != 0)
    name = hashlib.sha256(repr(inside.shape).encode() + inside.tobytes()).hexdigest()[:20]
    path = cached("masks", f"{name}.npy")
    if not path.exists():
        with fresh(path).open("wb") as file:
            np.save(file, inside)
        fresh(path).replace(path)
    return str(path)


def cached(kind: str, name: str) -> Path:
    """The cache's path for something of a kind; its folder exists."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "regaze" / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def fresh(path: Path) -> Path:
    """The path at which this process writes a file before it is moved to its place."""
    return path.with_suffix(f".{os.getpid()}")


def read_mask(place: Any) -> Any:
    """A place as a mask "H W", or as the box that it is.

    Raises:
        ValueError: It names a file that is no picture.
    """
    if not isinstance(place, str):
        return place
    from PIL import Image

    try:
        if place.endswith(".npy"):
            return torch.from_numpy(load_npy(place) != 0)
        with Image.open(place) as picture:
            return torch.from_numpy(np.asarray(picture.convert("L")) != 0)
    except (OSError, ValueError) as error:
        raise ValueError(f"the mask {shown(place)} can't be read: {reason(error)}") from None


def sized(method: str, place: Any, finest: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The tokens of a grid that lie in a place, "N".

    Args:
        method: Name of the method, for messages.
        place: A mask "H W" or a box.
        finest: The grid whose rows and columns have the picture's proportions.
        grid: (rows, columns) or (frames, rows, columns).

    Raises:
        ValueError: A mask has other proportions than the picture.
    """
    rows, columns = finest[-2:]
    if isinstance(place, Tensor):
        if place.shape[0] * columns != place.shape[1] * rows:
            raise ValueError(
                f"{method}: a mask of {place.shape[0]} x {place.shape[1]} (rows x columns) doesn't "
                f"have the proportions of the picture, whose latents have {rows} x {columns} "
                "tokens; make it of the picture's size"
            )
        return on_grid(place, grid)
    left, top, right, bottom = place
    *frames, tall, wide = grid
    x, y = ((torch.arange(n, dtype=torch.float32, device="cpu") + 0.5) / n for n in (wide, tall))
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    inside: Tensor = down[:, None] & across
    return inside.flatten().repeat(frames[0] if frames else 1)


def first_overlap(places: Sequence[Any]) -> tuple[int, int] | None:
    """Numbers of the first two places, boxes or masks "H W", that overlap."""
    masks = [tuple(one.shape) for one in places if isinstance(one, Tensor)]
    grid = max(masks, default=_FINE)
    if all(one[0] * grid[1] == one[1] * grid[0] for one in masks):
        found = [sized("", place, grid, grid) for place in places]
        for late, one in enumerate(found):
            for early in range(late):
                if bool((one & found[early]).any()):
                    return early, late
    return None  # Masks of other proportions are refused when the picture's are known.
