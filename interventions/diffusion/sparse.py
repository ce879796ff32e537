"""Attention of a denoiser to a part of its map: what the methods that choose the part share.

They compute the blocks that they keep and report what that is worth: the density (share of the map
that is computed), the error against dense attention in a sample of rows, and once for each
attachment the time of a call beside the dense kernel's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regaze.hooks.diffusion.blocks import Blocks, Kernel, attend
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.works import Work, change
from regaze.interventions.meter import Meter

_ROWS = 64
"""Rows in which the error is measured: all of them would be dense attention."""


class Part(NamedTuple):
    """The part of a call's map that is computed.

    Attributes:
        blocks: In that order.
        order: "H|1 N": which token stands at each place; None where they stay as they are.
    """

    blocks: Blocks
    order: Tensor | None = None


@dataclass(frozen=True)
class Sparse(Work):
    """Attention to a part of each call's map, in the pipeline's own branches.

    Attributes:
        part: The part that is computed.
        kernel: The kernel that computes it.
        meter: Keeps its density, error and time.
        fits: Raises if a denoiser isn't the one that the part is chosen for.
        seen: Denoisers that fit.
    """

    part: Callable[[Call], Part] = field(default=lambda call: NotImplemented, repr=False)
    kernel: Kernel = "auto"
    meter: Meter = field(default_factory=Meter, compare=False)
    fits: Callable[[Any], None] | None = None
    seen: MutableMapping[Any, bool] = field(
        default_factory=weakref.WeakKeyDictionary, compare=False, repr=False
    )

    def before(self, pass_: Pass) -> None:
        """See that a denoiser fits, once."""
        if self.fits is not None and pass_.denoiser not in self.seen:
            self.fits(pass_.denoiser)
            self.seen[pass_.denoiser] = True

    def attend(self, call: Call) -> Tensor:
        """Attend to the part alone."""
        part = self.part(call)
        made = sparsely(call, part, self.kernel)
        self.meter.see(part.blocks.density)
        self.meter.clock(
            made.device,
            lambda: sparsely(call, part, self.kernel),
            lambda: call.kernel(call.query, call.key, call.value),
        )
        return made

    def moved(self, call: Call, changed: Tensor) -> Tensor:
        """The error against dense attention, in a sample of rows."""
        count = call.query.shape[2]
        rows = torch.linspace(
            0, count - 1, min(_ROWS, count), device=changed.device, dtype=torch.float32
        ).long()
        more: dict[str, Any] = {}
        if call.mask is not None:
            mask = by_heads(call.mask)
            more["attn_mask"] = mask[:, :, rows] if mask.shape[2] > 1 else mask
        dense = call.kernel(call.query[:, :, rows], call.key, call.value, **more)
        return change(changed[:, :, rows], dense)

    def told(self) -> str:
        """Density and time."""
        return str(self.meter)


def sparsely(call: Call, part: Part, kernel: Kernel) -> Tensor:
    """The head outputs of a call, "B H N D", of a part of its map.

    Tokens are put in the part's order, which changes nothing by itself, and back afterwards.
    """
    query, key, value = call.query, call.key, call.value
    mask = None if call.mask is None else by_heads(call.mask)
    index = part.order
    if index is not None and not part.blocks.full:
        index = index.to(query.device)
        if len(index) > 1 and key.shape[1] != query.shape[1]:
            each = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(each, 1) for x in (key, value))
        query, key, value = (_ordered(x, index) for x in (query, key, value))
        mask = None if mask is None else _ordered_mask(mask, index)
    else:
        index = None
    made = attend(
        query, key, value, part.blocks, call.kernel, mask=mask, scale=call.scale, by=kernel
    )
    return made if index is None else _ordered(made, index.argsort(-1))


def by_heads(mask: Tensor) -> Tensor:
    """A mask as "B|1 H|1 N|1 N"."""
    return mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask


def _ordered(x: Tensor, index: Tensor) -> Tensor:
    if len(index) == 1:
        return x[:, :, index[0]]
    return x.gather(2, index[None, :, :, None].expand(len(x), -1, -1, x.shape[-1]))


def _ordered_mask(mask: Tensor, index: Tensor) -> Tensor:
    """A mask "B|1 H|1 N|1 N" in other orders."""
    batch, heads, rows, count = mask.shape
    heads = max(heads, len(index))
    mask = mask.expand(-1, heads, -1, -1)
    columns = index[None, :, None, :].expand(batch, heads, rows, count)
    mask = mask.gather(3, columns)
    if rows == 1:
        return mask
    return mask.gather(2, index[None, :, :, None].expand(batch, heads, count, count))


def clip_of(method: str, call: Call, image: slice) -> tuple[int, int, int]:
    """Frames, rows and columns of a call's picture.

    Raises:
        ValueError: It isn't known how they lie.
    """
    tokens = image.stop - image.start
    grid = call.layout.grid(call.site, tokens)
    if grid is None or len(grid) != 3:
        what = "an unknown grid" if grid is None else " x ".join(map(str, grid))
        raise ValueError(
            f"{method}: the {tokens} tokens of {call.site.name} make {what}, and it must be known "
            "which frame each belongs to: it acts on video transformers (Wan, HunyuanVideo, Mochi)"
        )
    return grid[0], grid[1], grid[2]


def image_first(image: slice, total: int) -> Tensor:
    """The token at each place when the picture's come first, and then the others."""
    tokens = torch.arange(total, device="cpu")
    return torch.cat([tokens[image], tokens[: image.start], tokens[image.stop :]])
