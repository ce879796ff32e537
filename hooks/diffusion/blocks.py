"""Attention of blocks of rows to the blocks of columns that a mask keeps, and no others.

B batch, H heads, G key/value heads, N tokens, D head size; tokens in blocks of ``size``, the last
one maybe shorter. Row blocks that keep the same columns go through the stock kernel together, over
keys and values gathered for them; what isn't kept is never computed, and nothing is N x N. On CUDA,
or where asked for, FlexAttention does the same from its block mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["auto", "gather", "flex"]
"""Kernels: the stock one over gathered columns, or FlexAttention ("auto" takes it on CUDA)."""
KERNELS: tuple[Kernel, ...] = ("auto", "gather", "flex")

Span = slice | Tensor
"""Tokens: from one to another, or by their indices."""


class Group(NamedTuple):
    """Rows that attend to the same columns.

    Attributes:
        heads: Their heads.
        rows: Their tokens.
        columns: The tokens that they attend to.
    """

    heads: slice
    rows: Span
    columns: Span


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of an attention map that are computed.

    Attributes:
        keep: "H|1 R C" bool, on the CPU; every row block keeps something.
        size: Tokens of a block.
        tokens: Tokens in all.

    Raises:
        ValueError: They don't cover the tokens, or a row block keeps nothing.
    """

    keep: Tensor
    size: int
    tokens: int

    def __post_init__(self) -> None:
        number = -(-self.tokens // self.size)
        if self.keep.shape[1:] != (number, number):
            raise ValueError(
                f"{self.tokens} tokens make {number} blocks of {self.size}, and the mask has "
                f"{tuple(self.keep.shape[1:])}"
            )
        if not bool(self.keep.any(-1).all()):
            raise ValueError("a block of rows keeps no block of columns, so it has no attention")

    @cached_property
    def density(self) -> float:
        """Share of the map that is computed, in pairs of tokens."""
        lengths = torch.full((self.keep.shape[-1],), self.size, dtype=torch.float64, device="cpu")
        lengths[-1] = self.tokens - self.size * (len(lengths) - 1)
        pairs = lengths @ self.keep.double() @ lengths
        return float(pairs.mean()) / self.tokens**2

    @cached_property
    def full(self) -> bool:
        """True if the whole map is computed."""
        return bool(self.keep.all())

    def mask(self) -> Tensor:
        """The mask by tokens, "H|1 N N": as large as a map."""
        whole = self.keep.repeat_interleave(self.size, 1).repeat_interleave(self.size, 2)
        return whole[:, : self.tokens, : self.tokens]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All rows of all heads, each once."""
        found = []
        for head, keep in enumerate(self.keep):
            heads = slice(head, head + 1) if len(self.keep) > 1 else slice(None)
            kinds, kind_of = keep.unique(dim=0, return_inverse=True)
            for number, columns in enumerate(kinds):
                rows = self._span((kind_of == number).nonzero().flatten())
                found.append(Group(heads, rows, self._span(columns.nonzero().flatten())))
        return tuple(found)

    def _span(self, blocks: Tensor) -> Span:
        first, last = int(blocks[0]), int(blocks[-1])
        if last - first + 1 == len(blocks):
            return slice(first * self.size, min(self.tokens, (last + 1) * self.size))
        each = blocks[:, None] * self.size + torch.arange(self.size, device="cpu")
        return each[each < self.tokens]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    kernel: Callable[..., Tensor],
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    by: Kernel = "auto",
) -> Tensor:
    """Attention to the blocks that are kept.

    Args:
        query: "B H N D".
        key: "B G N D".
        value: "B G N D".
        blocks: The blocks.
        kernel: The stock kernel: ``kernel(query, key, value)``; with ``attn_mask=`` where there is
            a mask. What it gets is a part of the map.
        mask: The call's own, "B|1 H|1 N|1 N", bool or added to logits.
        scale: Factor of the logits, for FlexAttention.
        by: The kernel that computes.

    Returns:
        "B H N D".
    """
    if blocks.full:
        return kernel(query, key, value, **({} if mask is None else {"attn_mask": mask}))
    if mask is None and (by == "flex" or by == "auto" and query.is_cuda):
        return _by_flex(query, key, value, blocks, scale)
    each = query.shape[1] // key.shape[1]
    # Rows of gathered columns lie together in memory.
    key, value = key.contiguous(), value.contiguous()
    made = query.new_empty(*query.shape[:3], value.shape[-1])
    for heads, rows, columns in blocks.groups:
        rows, columns = _on(rows, query), _on(columns, query)
        shared = (
            heads if heads.start is None else slice(heads.start // each, heads.start // each + 1)
        )
        more: dict[str, Any] = {}
        if mask is not None:
            mine = mask[:, heads] if mask.shape[1] > 1 else mask
            mine = mine[:, :, rows] if mask.shape[2] > 1 else mine
            more["attn_mask"] = mine[..., columns]
        made[:, heads, rows] = kernel(
            _taken(query, heads, rows),
            _taken(key, shared, columns),
            _taken(value, shared, columns),
            **more,
        )
    return made


def _taken(x: Tensor, heads: slice, span: Span) -> Tensor:
    """Some tokens of some heads of "B H N D"."""
    # Copies whole rows, where indexing copies number by number.
    some = x[:, heads]
    return some[:, :, span] if isinstance(span, slice) else some.index_select(2, span)


def _on(span: Span, like: Tensor) -> Span:
    return span if isinstance(span, slice) else span.to(like.device)


def _by_flex(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float | None
) -> Tensor:
    from torch.nn.attention.flex_attention import BlockMask

    keep, size = blocks.keep.to(query.device), blocks.size
    # How many columns each row block keeps, and which: these come first.
    counts = keep.sum(-1).int()[None]
    which = keep.int().argsort(dim=-1, descending=True, stable=True).int()[None]
    shared = len(keep) == 1

    def kept(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return keep[0 if shared else head, row // size, column // size]

    # All blocks are whole ones, so the compiled kernel never asks; the uncompiled one does.
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(which), counts, which, size, kept,
        (blocks.tokens, blocks.tokens),
    )  # fmt: skip
    made: Tensor = _flex()(
        query, key, value, block_mask=mask, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return made


@cache
def _flex() -> Callable[..., Any]:
    """FlexAttention, compiled: uncompiled it would hold the whole map."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled
