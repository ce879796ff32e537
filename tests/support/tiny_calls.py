"""Arguments of a tiny denoiser's call: pictures, videos, tokens, texts, and their sizes.

Pictures are HEIGHT x COLUMNS latents, so grids are HEIGHT/2 x COLUMNS/2 tokens wherever a model
cuts patches of two; videos have two latent frames. Texts have TEXT tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TEXT, WIDTH, POOLED, FRAMES = 5, 16, 12, 2
HEIGHT, COLUMNS = 8, 6
GRID = (HEIGHT // 2, COLUMNS // 2)
TOKENS = GRID[0] * GRID[1]
REFERENCES = 2 * GRID[1]
"""Tokens of another picture, of two rows."""

Call = Callable[[int], dict[str, Any]]


def cells(tokens: int) -> tuple[int, int, int]:
    """(frames, rows, columns) of so many tokens of a tiny picture or video."""
    for rows, columns in ((HEIGHT, COLUMNS), GRID, (HEIGHT, HEIGHT), (GRID[0], GRID[0])):
        for frames in (1, FRAMES):
            if frames * rows * columns == tokens:
                return frames, rows, columns
    raise AssertionError(tokens)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise; the first rows of a larger batch are those of a smaller one."""
    rows = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(100 * seed + i))
            for i in range(shape[0])]  # fmt: skip
    return torch.stack(rows)


def step(batch: int) -> Tensor:
    return torch.full((batch,), 500.0)


def text(batch: int, **more: Any) -> dict[str, Any]:
    return {
        "encoder_hidden_states": noise(batch, TEXT, WIDTH, seed=1),
        "timestep": step(batch),
    } | more


def ones(batch: int, length: int = TEXT) -> Tensor:
    return torch.ones(batch, length, dtype=torch.bool)


def padded(batch: int, length: int = TEXT) -> Tensor:
    """A mask under which every second row has two tokens less."""
    mask = ones(batch, length)
    mask[1::2, -2:] = False
    return mask


def picture(**more: Any) -> Call:
    return lambda b: text(b, hidden_states=noise(b, 4, HEIGHT, COLUMNS)) | for_batch(more, b)


def video(**more: Any) -> Call:
    return lambda b: (
        text(b, hidden_states=noise(b, 4, FRAMES, HEIGHT, COLUMNS)) | for_batch(more, b)
    )


def packed(channels: int, **more: Any) -> Call:
    """Latents that the pipeline cut into tokens."""
    return lambda b: text(b, hidden_states=noise(b, TOKENS, channels)) | for_batch(more, b)


def with_references(**more: Any) -> Call:
    """Latents in tokens with those of another picture after them."""
    return lambda b: (
        packed(16, **more)(b)
        | {"hidden_states": torch.cat([noise(b, TOKENS, 16), noise(b, REFERENCES, 16, seed=7)], 1)}
    )


def for_batch(more: dict[str, Any], batch: int) -> dict[str, Any]:
    """Arguments, of which those that depend on the batch are made for it."""
    return {k: v(batch) if callable(v) else v for k, v in more.items()}


def places(first: int = 0, axes: int = 3) -> Tensor:
    """A position for each image token."""
    rows, columns = GRID
    ids = torch.zeros(rows, columns, axes)
    ids[..., 0] = first
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.reshape(-1, axes)


def pooled(batch: int) -> Tensor:
    return noise(batch, POOLED, seed=3)


def unet_call(batch: int) -> dict[str, Any]:
    return text(batch, sample=noise(batch, 4, HEIGHT, COLUMNS))
