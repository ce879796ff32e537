"""Attention maps warped along a flow as FlowWarp's formula reads: matrices, frame by frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def warp_matrix(flow: NDArray[np.float64]) -> Tensor:
    """The matrix "N N" of a bilinear warp by a token flow "r c 2", coordinates kept in the grid."""
    rows, columns = flow.shape[:2]
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    from_x = np.clip(x + flow[..., 0], 0, columns - 1).reshape(-1, 1)
    from_y = np.clip(y + flow[..., 1], 0, rows - 1).reshape(-1, 1)
    near_x = np.clip(1 - abs(from_x - x.reshape(1, -1)), 0, None)
    near_y = np.clip(1 - abs(from_y - y.reshape(1, -1)), 0, None)
    return torch.from_numpy(near_x * near_y)


def on_tokens(
    flow: NDArray[np.floating], rows: int, columns: int, threshold: float | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A pixel flow "H W 2" on a token grid: the mean flow of pixels that move, and which tokens do.

    A token moves if half of its pixels do. The grid must divide the flow.
    """
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


def seen(visible: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    """The tokens that are seen in the frame before: half of their pixels at least."""
    cells = visible.reshape(rows, visible.shape[0] // rows, columns, -1)
    return np.asarray(cells.mean((1, 3)) >= 0.5)
