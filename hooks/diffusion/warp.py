"""Move the rows of a token grid along a flow, and back: pure tensor functions without a map.

A backward flow says where what a token of frame f shows was in frame f - 1. So the warp W fetches
for every token i a bilinear mixture of four tokens of the frame before,

    (W x)_i = sum_k share_ik x_(source_ik),

with coordinates kept inside the grid. W is linear, and a row-wise map edit needs nothing else: the
map A with its rows warped gives ``(W A) V = W (A V)``, with its columns warped too
``(W A W') V = W (A (W' V))``, where the adjoint W' adds every token to the four that it came from.

Flows are "F H W 2" with (dx, dy): x to the right, y downwards, in cells of their own grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Corners(NamedTuple):
    """The linear map W of each frame.

    Attributes:
        source: "F N 4", which tokens each token is fetched from.
        share: "F N 4", their weights, which sum to 1.
    """

    source: Tensor
    share: Tensor


def corners(flow: Tensor) -> Corners:
    """The tokens that each token of a grid is fetched from, with their shares.

    Args:
        flow: "F H W 2" in tokens; a token beyond the edge is taken from the edge.
    """
    height, width = flow.shape[1:3]
    places, shares = [], []
    for axis, size in ((0, width), (1, height)):
        own = torch.arange(size, dtype=flow.dtype, device=flow.device)
        at = (flow[..., axis] + (own if axis == 0 else own[:, None])).clamp(0, size - 1)
        low = at.floor().clamp(max=max(0, size - 2))
        places.append(torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long())
        shares.append(torch.stack([1 - (at - low), at - low], -1))
    source = places[1][..., :, None] * width + places[0][..., None, :]
    share = shares[1][..., :, None] * shares[0][..., None, :]
    return Corners(source.reshape(len(flow), -1, 4), share.reshape(len(flow), -1, 4))


def warp(x: Tensor, way: Corners) -> Tensor:
    """``W x``: every token fetched from where it was.

    Args:
        x: "B N C".
        way: The map W of B frames.
    """
    batch, tokens, size = x.shape
    first = torch.arange(batch, device=x.device)[:, None, None] * tokens
    bags, share = (way.source + first).reshape(-1, 4), way.share.to(x.dtype).reshape(-1, 4)
    # A warped token is a weighted bag of four: one pass over memory, whatever the dtype. With
    # grid_sample, coordinates in float16 would be off by a part of a token.
    fetched = F.embedding_bag(bags, x.reshape(-1, size), per_sample_weights=share, mode="sum")
    return fetched.reshape(batch, tokens, size)


def splat(x: Tensor, way: Corners) -> Tensor:
    """``W' x``: every token added to the four that it was fetched from.

    Args:
        x: "B N C".
        way: The map W of B frames.
    """
    out = torch.zeros_like(x)
    for corner in range(4):
        index = way.source[..., corner, None].expand_as(x)
        out.scatter_add_(1, index, x * way.share[..., corner, None].to(x.dtype))
    return out


def to_tokens(flow: Tensor, grid: tuple[int, int], moving: Tensor) -> tuple[Tensor, Tensor]:
    """A flow of pixels as one of tokens.

    A token moves if at least half of its pixels do, by their mean flow: so that at the edge of a
    moving thing its flow isn't diluted by what stands still behind it.

    Args:
        flow: "F H W 2" in pixels.
        grid: (rows, columns) of the tokens, which cover the same picture.
        moving: "F H W", which pixels move.

    Returns:
        "F r c 2" in tokens, zero where nothing moves; "F r c", which tokens move.
    """
    share = pooled(moving.to(flow.dtype), grid)
    mean = torch.stack([pooled(flow[..., a] * moving, grid) for a in (0, 1)], -1)
    moves = share >= 0.5
    pixels = flow.new_tensor([flow.shape[2] / grid[1], flow.shape[1] / grid[0]])
    mean = mean / share.clamp(min=torch.finfo(flow.dtype).tiny)[..., None] / pixels
    return torch.where(moves[..., None], mean, 0.0), moves


def pooled(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of a field "F H W" over the cells of another grid, "F r c"."""
    return F.interpolate(x[:, None], grid, mode="area")[:, 0]


def consistent(backward: Tensor, forward: Tensor) -> Tensor:
    """The pixels of frame f that are seen in frame f - 1: there and back again leads home.

    With b the backward flow at a pixel and w the forward flow at the place that it leads to,
    ``|b + w|^2 < 0.01 (|b|^2 + |w|^2) + 0.5`` (Sundaram, Brox, Keutzer, ECCV 2010, section 3.1),
    and that place lies in the picture.

    Args:
        backward: "F H W 2" in pixels, from frames f to f - 1.
        forward: The same from f - 1 to f.
    """
    frames, height, width = backward.shape[:3]
    there = warp(forward.reshape(frames, -1, 2), corners(backward)).reshape_as(backward)
    x = backward[..., 0] + torch.arange(width, device=backward.device)
    y = backward[..., 1] + torch.arange(height, device=backward.device)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    length = backward.square().sum(-1) + there.square().sum(-1)
    return inside & ((backward + there).square().sum(-1) < 0.01 * length + 0.5)
