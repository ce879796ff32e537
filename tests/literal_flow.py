"""Flow-warped self-attention the literal way: N x N maps, matrices entry by entry, loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from literal_maps import grid_of, image_tokens
from tiny_pipelines import COLUMNS, HEIGHT
from torch import Tensor

PIXELS = 8
"""Pixels of a flow per latent cell."""


def random_flow(frames: int, seed: int = 0) -> np.ndarray:
    """A flow in which half of the picture moves, each token by its own vector, up to the edge."""
    rng = np.random.default_rng(seed)
    cells = rng.uniform(-20, 20, (frames - 1, HEIGHT // 2, COLUMNS // 2, 2))
    cells[rng.random(cells.shape[:3]) < 0.4] = 0.1
    size = 2 * PIXELS
    flow = cells.repeat(size, 1).repeat(size, 2)
    flow[:, :3] = 0  # The edge of the first row of tokens stands still.
    return flow.astype(np.float32)


def warp_matrix(flow: np.ndarray) -> Tensor:
    """The matrix of a bilinear warp by a token flow "r c 2", coordinates kept inside the grid."""
    rows, columns = flow.shape[:2]
    matrix = torch.zeros(rows * columns, rows * columns, dtype=torch.float64)
    for y in range(rows):
        for x in range(columns):
            at_x = min(max(x + flow[y, x, 0], 0), columns - 1)
            at_y = min(max(y + flow[y, x, 1], 0), rows - 1)
            for row in range(rows):
                for column in range(columns):
                    share = max(0, 1 - abs(at_x - column)) * max(0, 1 - abs(at_y - row))
                    matrix[y * columns + x, row * columns + column] = float(share)
    return matrix


def on_tokens(
    flow: np.ndarray, rows: int, columns: int, threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """A pixel flow "H W 2" on a token grid: mean flow of the pixels that move, and which do."""
    tall, wide = flow.shape[0] // rows, flow.shape[1] // columns
    found, moves = np.zeros((rows, columns, 2)), np.zeros((rows, columns), bool)
    for y in range(rows):
        for x in range(columns):
            cell = flow[y * tall : (y + 1) * tall, x * wide : (x + 1) * wide].reshape(-1, 2)
            length = np.sqrt((cell.astype(np.float64) ** 2).sum(-1))
            moving = cell if threshold is None else cell[length > threshold]
            moves[y, x] = len(moving) * 2 >= len(cell)
            if moves[y, x]:
                found[y, x] = moving.mean(0, dtype=np.float64) / (wide, tall)
    return found, moves


def seen(visible: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which tokens are seen in the frame before: half of their pixels at least."""
    cells = visible.reshape(rows, visible.shape[0] // rows, columns, -1)
    return np.asarray(cells.mean((1, 3)) >= 0.5)


def column(truth: np.ndarray) -> Tensor:
    """One truth value per row of a map."""
    return torch.from_numpy(truth.reshape(-1, 1))


def edit_maps(
    a: Tensor, image: slice, grid: tuple[int, int], spec: Any, flow: np.ndarray,
    visible: np.ndarray | None, split: Any,
) -> Tensor:  # fmt: skip
    """The maps "B H N N" of all frames, edited as `regaze.FlowWarp` says.

    Args:
        a: The maps.
        image: Where the image's tokens are.
        grid: Their rows and columns.
        spec: The settings.
        flow: "F-1 H W 2", in pixels.
        visible: "F-1 H W", or None.
        split: Branches (and what else comes first), frames, images per prompt.
    """
    rows, columns = grid
    a = a.double().unflatten(0, split)
    done = a.clone()
    for f in range(1, a.shape[1]):
        moved, moves = on_tokens(flow[f - 1], rows, columns, spec.threshold)
        r = warp_matrix(moved)
        before = (done if spec.recursive else a)[:, f - 1][..., image, :]
        warped = r @ before
        if spec.axis == "both":
            warped = warped.clone()
            warped[..., image] = warped[..., image] @ r.T
            total = warped.sum(-1, keepdim=True)
            warped = torch.where(total > 1e-6, warped / total, a[:, f][..., image, :])
        own = a[:, f][..., image, :]
        mixed = (1 - spec.weight) * own + spec.weight * warped
        # With both axes, what a still row looked at may have moved.
        copied = before if spec.axis == "query" else warped
        rest = own if spec.static == "own" else copied
        new = torch.where(column(moves), mixed, rest)
        if visible is not None:
            new = torch.where(column(seen(visible[f - 1], rows, columns)), new, own)
        done[:, f][..., image, :] = new
    return done.flatten(0, 2)


def editor(spec: Any, flow: np.ndarray, visible: np.ndarray | None, orders: Mapping[str, str],
           split: Any) -> Any:  # fmt: skip
    """An edit for `literal_maps.edited`."""

    def edit(name: str, query: Tensor, key: Tensor, logits: Tensor, bias: Tensor, a: Tensor,
             scale: float) -> Tensor:  # fmt: skip
        image = image_tokens(name, a.shape[-1], orders[name])
        grid = grid_of(image.stop - image.start)[1:]
        return edit_maps(a, image, grid, spec, flow, visible, split).to(a.dtype)

    return edit
