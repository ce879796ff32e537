"""Attention of a prompt on near columns and on stripes, as `AnchorAttention` chooses them.

Near columns are computed explicitly, some rows at a time, because their largest logits are needed;
stripes by a kernel over gathered keys; both are put together by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regaze.hooks.diffusion.lse import together, with_lse

_PIECE = 2**23
"""The most logits that exist at once."""


class Blocks(Protocol):
    """The fields of `AnchorAttention` that decide on columns."""

    @property
    def theta(self) -> float: ...  # noqa: D102
    @property
    def block(self) -> int: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def init(self) -> int: ...  # noqa: D102


class Near(NamedTuple):
    """Attention of a superblock's rows on the columns near them.

    Attributes:
        out: "H R D" float32, attention on these columns alone.
        lse: "H R", the log of its summed exponentials.
        anchor: "H R", the largest logit.
    """

    out: Tensor
    lse: Tensor
    anchor: Tensor


def anchored(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    spec: Blocks,
    mask: Tensor | None = None,
    *,
    maps: bool = False,
) -> tuple[Tensor, float, Tensor | None]:
    """Attention of one sample's prompt.

    Args:
        query: "H N D".
        key: "G N D".
        value: "G N D".
        scale: Factor of the logits.
        spec: Blocks and threshold.
        mask: Bool "1|H N N", which rows see which columns; None: those before and themselves.
        maps: True if the weights are wanted.

    Returns:
        "H N D", the share of the pairs under the diagonal that were computed, and weights "H N N"
        or None.
    """
    heads, count, _ = query.shape
    each = heads // key.shape[0]
    key, value = (x.repeat_interleave(each, 0) if each > 1 else x for x in (key, value))
    span, pairs = spec.block * spec.step, 0.0
    out = value.new_empty(heads, count, value.shape[-1])
    weights = (
        torch.zeros(heads, count, count, device=query.device, dtype=torch.float32) if maps else None
    )
    for start in range(0, count, span):
        rows = slice(start, min(start + span, count))
        first = min(spec.init, start)
        end = rows.stop if mask is None else count
        near = _near(query, key, value, scale, rows, first, end, mask)
        size = rows.stop - start
        pairs += heads * (size * (size + 1) / 2 + size * first)
        chosen = stripes(query[:, rows], key[:, first:start], near.anchor, scale, spec)
        for head in range(heads):
            at = chosen[head].nonzero().flatten()
            pairs += size * len(at)
            made = near.out[head]
            if len(at):
                columns = first + at
                far = _far(
                    query[head, rows],
                    key[head].index_select(0, columns),
                    value[head].index_select(0, columns),
                    scale,
                )
                made = together((near.out[head][None, None], near.lse[head][None, None]), far)[0, 0]
            out[head, rows] = made.to(out.dtype)
            if weights is not None:
                whole = [*range(first), *(first + at).tolist(), *range(start, end)]
                weights[head, rows] = _weights(
                    query[head], key[head], scale, rows, whole, mask, head
                )
    return out, pairs / (heads * count * (count + 1) / 2), weights


def stripes(query: Tensor, key: Tensor, anchor: Tensor, scale: float, spec: Blocks) -> Tensor:
    """The columns that all rows of a superblock see, bool "H C".

    Args:
        query: "H R D", of its rows.
        key: "H C D", of the columns between the first ones and its own.
        anchor: "H R", its rows' largest logits near by.
        scale: Factor of the logits.
        spec: Blocks and threshold.
    """
    blocks = list(zip(query.float().split(spec.block, 1), anchor.split(spec.block, 1), strict=True))
    mean = torch.stack([rows.mean(1) for rows, _ in blocks], 1)
    least = torch.stack([largest.mean(1) for _, largest in blocks], 1) - spec.theta
    return ((mean * scale) @ key.float().transpose(1, 2) >= least[..., None]).any(1)


def _near(
    query: Tensor, key: Tensor, value: Tensor, scale: float, rows: slice, first: int, end: int,
    mask: Tensor | None,
) -> Near:  # fmt: skip
    parts = []
    for some in _pieces(rows, len(query) * (first + end - rows.start)):
        stop = some.stop if mask is None else end
        keys, values = (torch.cat([x[:, :first], x[:, rows.start : stop]], 1) for x in (key, value))
        logits = (query[:, some].float() * scale) @ keys.float().transpose(1, 2)
        if mask is None:
            row, column = (
                torch.arange(x.start, x.stop, device=query.device)
                for x in (some, slice(rows.start, stop))
            )
            logits[..., first:].masked_fill_(column > row[:, None], -torch.inf)
        else:
            seen = mask[:, some]
            seen = torch.cat([seen[..., :first], seen[..., rows.start : stop]], -1)
            logits = logits.masked_fill(~seen, -torch.inf)
        largest = logits.amax(-1, keepdim=True)
        weights = logits.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        out = weights @ values.float() / total
        parts.append(Near(out, (largest + total.log())[..., 0], largest[..., 0]))
    return Near(*(torch.cat(x, 1) for x in zip(*parts, strict=True)))


def _far(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention on stripes, and its log-sum-exp, "1 1 R D" and "1 1 R"."""
    query, key, value = (x[None, None] for x in (query, key, value))
    # The kernels that return the log-sum-exp want values as wide as keys.
    alike = value.shape[-1] == key.shape[-1]
    if alike and (found := with_lse(query, key, value, scale)) is not None:
        return found
    parts = []
    for some in _pieces(slice(0, query.shape[2]), key.shape[2]):
        logits = (query[:, :, some].float() * scale) @ key.float().transpose(2, 3)
        lse = logits.logsumexp(-1)
        parts.append(((logits - lse[..., None]).exp() @ value.float(), lse))
    out, lses = zip(*parts, strict=True)
    return torch.cat(out, 2), torch.cat(lses, 2)


def _pieces(rows: slice, each: int) -> Iterator[slice]:
    size = max(1, min(256, _PIECE // max(each, 1)))
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _weights(
    query: Tensor, key: Tensor, scale: float, rows: slice, columns: list[int],
    mask: Tensor | None, head: int,
) -> Tensor:  # fmt: skip
    """A head's weights of some rows, "R N", for models that hand out maps."""
    count = len(key)
    logits = (query[rows].float() * scale) @ key.float().T
    kept = torch.zeros(count, dtype=torch.bool, device=key.device)
    kept[columns] = True
    if mask is None:
        index = torch.arange(count, device=key.device)
        seen = index <= index[rows, None]
    else:
        seen = mask[head if len(mask) > 1 else 0, rows]
    return logits.masked_fill(~(seen & kept), -torch.inf).softmax(-1)
