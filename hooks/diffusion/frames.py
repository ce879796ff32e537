"""Attention across the frames of a clip that lie in one batch: one frame's map, another's values.

Tensors of a call are stacked "O F I H N D": branches of guidance, frames, images per prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.warp import Corners, splat


class Way(NamedTuple):
    """The flow on a layer's token grid.

    Attributes:
        corners: Places that tokens come from, "F-1 N 4".
        weight: Share of the warped map, "F-1 N".
    """

    corners: Corners
    weight: Tensor

    def of(self, frame: int) -> Way:
        """The flow of one frame, counted from 1, for any number of frames."""
        row = slice(frame - 1, frame)
        return Way(Corners(*(x[row] for x in self.corners)), self.weight[row])


class Runs:
    """Runs of a call's kernel with the maps of some frames on the values of others."""

    def __init__(self, call: Call, split: tuple[int, int, int]) -> None:
        self.split, self.image, self._kernel = split, call.image(), call.kernel
        # Where the image is among the keys.
        self.columns = slice(self.image.start + call.first, self.image.stop + call.first)
        self._query = call.query[:, :, self.image].unflatten(0, split)
        self._key, self.value = (x.unflatten(0, split) for x in (call.key, call.value))
        self._mask = call.mask
        if call.mask is not None and call.mask.shape[-2] > 1:
            self._mask = call.mask[..., self.image, :]

    def __call__(self, maps: slice, value: Tensor) -> Tensor:
        """Head outputs of the image's rows, "O F I H N D".

        Args:
            maps: Frames whose maps are taken: one for all values, or one for each.
            value: "O F I G N D".
        """
        shape = value.shape[:3]

        def rows(x: Tensor) -> Tensor:
            return x[:, maps].expand(*shape, *x.shape[3:]).flatten(0, 2)

        mask = self._mask
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = rows(mask.unflatten(0, self.split))
        named = {} if mask is None else {"attn_mask": mask}
        output: Tensor = self._kernel(
            rows(self._query), rows(self._key), value.flatten(0, 2), **named
        )
        unfolded: Tensor = output.unflatten(0, shape)
        return unfolded


def carry(move: Callable[[Tensor, Corners], Tensor], x: Tensor, way: Way) -> Tensor:
    """Warp or splat tokens "O F I H N D", each frame along its way."""
    outer, frames, images, heads, tokens, size = x.shape

    def rows(table: Tensor) -> Tensor:
        return table[None, :, None].expand(outer, frames, images, -1, -1).flatten(0, 2)

    flat = x.transpose(3, 4).reshape(outer * frames * images, tokens, heads * size)
    moved = move(flat, Corners(*map(rows, way.corners)))
    return moved.reshape(outer, frames, images, tokens, heads, size).transpose(3, 4)


def splat_columns(value: Tensor, image: slice, way: Way) -> Tensor:
    """Values whose image tokens were splatted."""
    splatted = value.clone()
    splatted[:, :, :, :, image] = carry(splat, value[:, :, :, :, image], way)
    return splatted


def mix(own: Tensor, fetched: Tensor, way: Way) -> Tensor:
    """``(1 - w) own + w fetched`` by token."""
    return torch.lerp(own, fetched, way.weight[:, None, None, :, None])
