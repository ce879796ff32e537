"""Biases on columns that all rows of some heads get: whole blocks, by a kernel, without a map.

Methods that steer attention to a span add a constant to its columns' logits in every row. Rows that
aren't recomputed anyway then run once more, in those heads and samples alone, by a kernel that
takes a mask of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regaze.hooks.attention import mix_values, row_logits, visible_columns
from regaze.hooks.dispatch import Attention, Call
from regaze.hooks.rows import MOST_ELEMENTS, refuse_unknown


@dataclass(frozen=True)
class ColumnBias:
    """A bias on the logits of one attention call.

    Attributes:
        heads: Bool "H": the heads that get it.
        columns: "B K" float32: what is added.
    """

    heads: Tensor
    columns: Tensor

    def add(self, logits: Tensor) -> Tensor:
        """Add the bias to logits "B H R K"."""
        heads = self.heads.to(logits.device)[:, None, None]
        return torch.where(heads, logits + self.columns.to(logits)[:, None, None], logits)


def add_biases(
    done: Attention, call: Call, biases: Sequence[ColumnBias], query_offset: int
) -> Attention:
    """The result of an attention call, with biases in the heads and samples that have them.

    Args:
        done: Result of the stock function: "B Q H D", and maps "B H Q K" if it makes them.
        call: The call.
        biases: Biases to add to the call's logits.
        query_offset: Key column of query row 0.
    """
    refuse_unknown(call)
    out, weights = done
    device = call.query.device
    total = torch.stack([b.heads.to(device)[:, None] * b.columns[:, None] for b in biases]).sum(0)
    samples = total.flatten(1).any(1).nonzero().flatten()
    heads = total.any(-1).any(0).nonzero().flatten()
    if not len(samples):
        return done
    bias = total[samples[:, None], heads]  # "b h K"
    if bool((bias == bias[:, :1]).all()):
        bias = bias[:, :1]
    start = 0
    if call.mask is None and call.causal and not query_offset:
        # A row that sees one and the same bias everywhere stays as it is.
        start = int((bias != bias[..., :1]).any(1).int().argmax(-1).min())
    rows = torch.arange(start, call.query.shape[2], device=device).expand(len(call.query), -1)
    visible, more = visible_columns(
        call.mask,
        rows,
        call.key.shape[2],
        query_offset=query_offset,
        causal=call.causal,
        window=call.kwargs.get("sliding_window"),
    )
    added = bias[:, :, None]
    if more is not None:
        added = added + _of(more, samples)
    if visible is not None:
        added = added.masked_fill(~_of(visible, samples), torch.finfo(added.dtype).min)
    group = call.query.shape[1] // call.key.shape[1]
    query = call.query[samples[:, None], heads, start:]
    key, value = (x[samples[:, None], heads // group] for x in (call.key, call.value))
    new, maps = _attend(call, query, key, value, added)
    out, where = out.clone(), (samples[:, None, None], rows[:1, :, None], heads)
    out[where] = new.to(out.dtype)
    if weights is not None and maps is not None:
        weights, where = weights.clone(), (samples[:, None, None], heads[:, None], rows[:1])
        weights[where] = maps.to(weights.dtype)
    return out, weights


def _of(mask: Tensor, samples: Tensor) -> Tensor:
    return mask if len(mask) == 1 else mask[samples]


def _attend(
    call: Call, query: Tensor, key: Tensor, value: Tensor, added: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Attention "B R H D" with a mask of numbers "B 1|H R K", and maps where the call has them."""
    softcap = call.kwargs.get("softcap")
    if softcap is None and not call.maps:
        lowest = max(torch.finfo(one.dtype).min for one in (query, added))
        mask = added.clamp(min=lowest).to(query.dtype).expand(-1, -1, query.shape[2], -1)
        out = scaled_dot_product_attention(query, key, value, mask, scale=call.scaling)
        return out.transpose(1, 2), None
    at_once = max(1, MOST_ELEMENTS // (query.shape[0] * query.shape[1] * key.shape[2]))
    parts, maps = [], []
    for at in range(0, query.shape[2], at_once):
        logits = row_logits(query[:, :, at : at + at_once], key, call.scaling, softcap)
        rows = added if added.shape[2] == 1 else added[:, :, at : at + at_once]
        maps.append((logits + rows).softmax(-1))
        parts.append(mix_values(maps[-1], value))
    return torch.cat(parts, 1), torch.cat(maps, 2) if call.maps else None
