"""The map from a run of image columns to a grid of patches over the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.families import FAMILIES

GRID_INPUTS = ("image_grid_thw", "image_sizes")
"""Model inputs that tell the grids; one row per image, over the batch in reading order."""


def patch_grid(config: Any, columns: int, size: Tensor | None, breaks: int = 0) -> Tensor | None:
    """Return the places of one image's patches in its run of columns.

    Models that cut an image into tiles and add the whole picture, small, give the grid that covers
    the picture: the unpadded tiles of LLaVA-NeXT and OneVision, the small picture of InternVL,
    Idefics3 and SmolVLM.

    Args:
        config: The model's config.
        columns: Number of image columns of this image.
        size: This image's row of the `GRID_INPUTS` that the model uses, if any.
        breaks: Row-break columns seen inside the image (Mistral3).

    Returns:
        "rows cols" indices into the run, or None if the grid can't be known.
    """
    family = FAMILIES.get(getattr(config, "model_type", ""))
    kind = "unknown" if family is None else family.grid
    first, shape = 0, None
    if kind == "thw":
        if size is None:
            return None
        merge = config.vision_config.spatial_merge_size
        frames, height, width = (int(v) for v in size)
        # One picture; of a video's frames the first is shown.
        shape = (height // merge, width // merge)
        if columns != frames * shape[0] * shape[1]:
            return None
    elif kind == "anyres":
        return _any_resolution(config, columns, size)
    elif kind == "last tile":
        side = _tile_side(config)
        first, shape = columns - side * side, (side, side)
    elif kind == "breaks" and breaks:
        shape = (breaks + 1, columns // (breaks + 1))
    elif kind == "square" and (side := math.isqrt(columns)) ** 2 == columns:
        shape = (side, side)
    if shape is None or first < 0 or first + shape[0] * shape[1] > columns:
        return None
    return first + torch.arange(shape[0] * shape[1], device="cpu").reshape(shape)


def grid_size(inputs: Mapping[str, Any], image: int) -> Tensor | None:
    """The size entry of one image, counted over the batch in reading order."""
    for name in GRID_INPUTS:
        sizes = inputs.get(name)
        if isinstance(sizes, Tensor) and sizes.ndim == 2 and image < len(sizes):
            return sizes[image]
    return None


def _tile_side(config: Any) -> int:
    if hasattr(config, "image_seq_length"):  # InternVL
        return math.isqrt(config.image_seq_length)
    vision = config.vision_config
    return int(vision.image_size // vision.patch_size // config.scale_factor)


def _any_resolution(config: Any, columns: int, size: Tensor | None) -> Tensor | None:
    # Here, because loading that model's code takes seconds.
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        unpad_image,
    )

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    tiles = columns - side * side
    if tiles <= 1 or size is None:
        return torch.arange(side * side, device="cpu").reshape(side, side) if tiles >= 0 else None
    shape = get_anyres_image_grid_shape(
        size.tolist(), config.image_grid_pinpoints, vision.image_size
    )
    canvas = torch.empty(1, shape[0] * side, shape[1] * side, dtype=torch.float32, device="cpu")
    rows, cols = unpad_image(canvas, size.tolist()).shape[1:]
    if hasattr(config, "vision_aspect_ratio"):  # LLaVA-OneVision pools what is too much
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * side**2))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
    if tiles != rows * (cols + 1):
        return None
    # Each row of tiles ends in a newline column, which is no patch.
    grid: Tensor = side * side + torch.arange(tiles, device="cpu").reshape(rows, cols + 1)[:, :-1]
    return grid
