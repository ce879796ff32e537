"""Exact attention for a few query rows, without the T x T map.

B batch, H query heads, G key/value heads, Q queries, R chosen query rows, K keys, D head size.
Rows of one attention call are independent, so recomputing R of them in float32 and writing them
over the stock kernel's output is exact: O(H R K D) work and no map. Keys and values are taken as
the kernel gets them: after rotary embedding, normalisation and the cache update.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def unrounded(kind: str) -> AbstractContextManager[object]:
    """A context in which `torch.autocast` leaves float32 products on a kind of device alone."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


def row_logits(query: Tensor, key: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """Scaled logits of the given query rows in float32, before any mask.

    Args:
        query: "B H R D", the chosen rows.
        key: "B G K D"; query head h reads group ``h // (H / G)``.
        scaling: Usually ``D ** -0.5``.
        softcap: Bound c of Gemma-style capping ``c tanh(z / c)``.

    Returns:
        "B H R K".
    """
    batch, heads, rows, size = query.shape
    groups = key.shape[1]
    # Folding the heads of a group into rows spares the H / G copies of the keys.
    folded = (query.float() * scaling).reshape(batch, groups, heads // groups * rows, size)
    # Rows on the left: with one of them MKL reads the keys twice as fast as in "keys @ row".
    logits = (folded @ key.float().transpose(-1, -2)).reshape(batch, heads, rows, -1)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def mix_values(weights: Tensor, value: Tensor) -> Tensor:
    """Head outputs of the given rows.

    Args:
        weights: "B H R K", float32.
        value: "B G K D".

    Returns:
        "B R H D", float32.
    """
    batch, heads, rows, keys = weights.shape
    groups = value.shape[1]
    folded = weights.reshape(batch, groups, heads // groups * rows, keys)
    return (folded @ value.float()).reshape(batch, heads, rows, -1).transpose(1, 2)


def plain_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    seen: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the attention of a few rows without edits, in float32.

    Args:
        query: "B H R D".
        key: "B G K D".
        value: "B G K D".
        scaling: Factor of the logits.
        softcap: See `row_logits`.
        seen: Bool, broadcastable to "B H R K"; each row sees something.
        bias: Added to the logits, likewise.

    Returns:
        "B R H D", float32.
    """
    logits = row_logits(query, key, scaling, softcap)
    logits = logits if bias is None else logits + bias
    return mix_values(logits.masked_fill(~seen, -torch.inf).softmax(-1), value)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Pick query rows per batch row: "B H Q D" and row indices "B R" -> "B H R D"."""
    index = rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def scatter_rows(out: Tensor, rows: Tensor, valid: Tensor, new: Tensor) -> Tensor:
    """Write recomputed rows over the stock output.

    Args:
        out: "B Q H D", the stock kernel's output; written to unless its backward pass may need it.
        rows: "B R" row indices; a batch row with fewer rows repeats one, marked invalid.
        valid: "B R" bool; rows that are not valid keep the stock value bit for bit.
        new: "B R H D".
    """
    index = rows[:, :, None, None].expand(-1, -1, *out.shape[2:])
    keep = out.gather(1, index)
    new = torch.where(valid[:, :, None, None], new.to(out.dtype), keep)
    return out.scatter(1, index, new) if out.requires_grad else out.scatter_(1, index, new)


def visible_columns(
    mask: object,
    rows: Tensor,
    n_keys: int,
    *,
    query_offset: int,
    causal: bool,
    window: int | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the keys that the chosen rows may see, whatever form the kernel's mask has.

    Args:
        mask: Mask that the attention function was given: None (plain causal), bool or additive
            "B|1 1|H Q K'", a 2-D padding mask "B K" (flash kernels) or a flex ``BlockMask``.
        rows: "B R" row indices within the query block.
        n_keys: K.
        query_offset: Key column of query row 0.
        causal: True if a mask that doesn't say so itself (None, 2-D) implies causality.
        window: Sliding-window size that such a mask implies, if any.

    Returns:
        Bool "B 1|H R K" (None: everything visible) and an additive float bias, 0 where
        nothing is seen, or None.

    Raises:
        TypeError: A mask of an unknown kind.
    """
    columns = torch.arange(n_keys, device=rows.device)
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        visible = torch.ones(1, 1, 1, n_keys, dtype=torch.bool, device=rows.device)
        position = (rows + query_offset)[:, None, :, None]
        if causal:
            visible = visible & (columns <= position)
        if window is not None:
            visible = visible & (columns > position - window)
        if isinstance(mask, Tensor):
            padding = mask.bool()[:, None, None, :n_keys]
            # A static cache is longer than the padding mask; its tail is not filled yet.
            tail = n_keys - padding.shape[-1]
            visible = visible & torch.nn.functional.pad(padding, (0, tail))
        return visible, None
    if isinstance(mask, Tensor):
        batch = rows.shape[0]
        mask = mask[..., :n_keys].expand(batch, -1, -1, -1)
        picked = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, n_keys))
        if picked.dtype == torch.bool:
            return picked, None
        visible = picked > torch.finfo(picked.dtype).min / 2
        return visible, picked.float().masked_fill(~visible, 0)
    if hasattr(mask, "mask_mod"):
        batch_index = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
        head = torch.zeros((), dtype=torch.long, device=rows.device)
        visible = mask.mask_mod(batch_index, head, rows[:, :, None], columns[None, None])
        return visible[:, None], None
    raise TypeError(f"regaze can't read an attention mask of type {type(mask).__name__}")
