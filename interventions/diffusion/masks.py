"""Masks of parts of a picture: kept in files, so that a spec is JSON, and laid over token grids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.checks import reason


def keep(mask: Any) -> str:
    """The path of a mask: its own, or its place in ``$XDG_CACHE_HOME/regaze/masks``.

    Args:
        mask: A file's path; or an array "H W", or "F H W" with one for each frame, in which what
            isn't zero lies inside.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(mask, (str, Path)):
        return str(mask)
    found = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if found.ndim not in (2, 3) or found.dtype == object or not found.size:
        raise ValueError(
            "a mask is an array (rows, columns), or (frames, rows, columns), or the path of a "
            f"picture or .npy file; got an array of shape {found.shape}"
        )
    inside = np.ascontiguousarray(found != 0)
    name = hashlib.sha256(repr(inside.shape).encode() + inside.tobytes()).hexdigest()[:20]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "regaze" / "masks" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.npy")
        np.save(fresh, inside)
        fresh.replace(path)
    return str(path)


def load_npy(path: str) -> NDArray[Any]:
    """An array of numbers from a file; nothing in it is run.

    Raises:
        OSError: There is no such file.
        ValueError: It is none, or holds objects.
    """
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError("it isn't an array of numbers, as numpy.save writes it") from error


def read(path: str) -> Tensor:
    """A mask from a file, "H W" or "F H W", bool.

    Args:
        path: ``.npy``, in which what isn't zero lies inside; or a picture, in which what is lighter
            than half lies inside.

    Raises:
        ValueError: It can't be read, or is no mask.
    """
    try:
        if path.endswith(".npy"):
            found = load_npy(path) != 0
        else:
            from PIL import Image

            with Image.open(path) as picture:
                found = np.asarray(picture.convert("L")) > 127
    except (OSError, ValueError) as error:
        raise ValueError(f"mask {path} can't be read: {reason(error)}") from None
    if found.ndim not in (2, 3) or not found.size:
        raise ValueError(f"mask {path} is of shape {found.shape}; it must be (rows, columns)")
    return torch.from_numpy(np.ascontiguousarray(found))


def on_tokens(mask: Tensor, grid: Sequence[int], finest: Sequence[int]) -> Tensor:
    """The tokens that hold any part of a mask, "N" bool.

    A token half of which may change has to be free, so one pixel inside is enough.

    Args:
        mask: "H W", or "F H W" with one for each frame of the grid.
        grid: (rows, columns) or (frames, rows, columns).
        finest: The same at the latents' own size, whose proportions a mask has.

    Raises:
        ValueError: It has other proportions than the picture, or masks of other frames.
    """
    *frames, rows, columns = grid
    tall, wide = mask.shape[-2:]
    if tall * finest[-1] != wide * finest[-2]:
        raise ValueError(
            f"a mask of {tall} x {wide} (rows x columns) doesn't have the proportions of the "
            f"picture, whose latents have {finest[-2]} x {finest[-1]} tokens; make it of the "
            "picture's size"
        )
    count = frames[0] if frames else 1
    if mask.ndim == 3 and len(mask) != count:
        raise ValueError(f"a mask of {len(mask)} frames doesn't fit {count} frames of latents")
    each = mask if mask.ndim == 3 else mask[None].expand(count, -1, -1)
    if tall < rows or wide < columns:
        sized = F.interpolate(each[:, None].float(), (rows, columns), mode="nearest-exact")
    else:
        sized = F.adaptive_max_pool2d(each[:, None].float(), (rows, columns))
    return (sized != 0).flatten()
