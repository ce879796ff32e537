"""Masks of what may be edited, read in joint attention: the places of a prompt's words.

With A the map of a layer's rows over all its columns, picture and text, a row of the picture gives
the words ``s_i = sum over their columns j of A_ij``: mean over heads, layers and steps, from 0 to 1
over a picture, and a token above the threshold belongs to the words (ConsistEdit, arXiv 2510.17803;
zxYin/ConsistEdit_Code@0b73d6a, attention_map_controller.py). Only these columns are ever formed:
``A_ij = exp(z_ij - lse_i)``, with the log-sum-exp of the row's logits from the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.lse import with_lse
from regaze.hooks.diffusion.perturb import as_query_heads, mask_as_numbers

_SMALL = 1e-6
"""Added to the range of a map before it is divided by, as in the code."""


@dataclass(frozen=True)
class Attended:
    """Queries, keys and values of some rows, and what the kernel makes of them.

    Attributes:
        query: "S H N D".
        key: "S H N D", as many heads as queries.
        output: "S H N D"; None if no kernel gave the log-sum-exp.
        lse: "S H N"; None likewise.
    """

    query: Tensor
    key: Tensor
    output: Tensor | None
    lse: Tensor | None

    @classmethod
    def of(cls, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Run the kernel that also gives the log-sum-exp, where there is one."""
        heads = query.shape[1]
        key, value = as_query_heads(key, heads), as_query_heads(value, heads)
        found = None if call.mask is not None else with_lse(query, key, value, call.scale)
        return cls(query, key, *(found or (None, None)))


def shares(call: Call, rows: Attended, which: Tensor, members: Tensor, over: str) -> Tensor:
    """Shares that the picture's tokens give to words, mean over heads: "S N" float32.

    Args:
        call: A call of joint attention.
        rows: The source of its rows.
        which: Their numbers in the call's batch, "S".
        members: "S T", 1 for a row's words among the T tokens of the text, else 0.
        over: Columns whose attention sums to 1: the "joint" ones, or those of the "text" alone.
    """
    image, text = call.image(), call.text()
    query, members = rows.query[:, :, image], members.to(rows.query.device)
    if over == "text":
        return _over_text(call, query, rows.key[:, :, text], which, members)
    if rows.lse is None:
        return _by_kernel(call, query, rows.key, which, members)
    wanted = members.any(0).nonzero().flatten()
    key = rows.key[:, :, text][:, :, wanted]
    logits = (query.float() @ key.float().transpose(-1, -2)) * call.scale
    weights = (logits - rows.lse[:, :, image, None].float()).exp()
    return (weights * members[:, None, None, wanted]).sum(-1).mean(1)


def _by_kernel(call: Call, query: Tensor, key: Tensor, which: Tensor, members: Tensor) -> Tensor:
    """The same by the stock kernel, on values that are 1 for the words and 0 for all else."""
    text = call.text()
    value = torch.zeros_like(key)
    value[:, :, text, 0] = members[:, None, : text.stop - text.start].to(value.dtype)
    mask = _rows_of(call, which)
    named = {} if mask is None else {"attn_mask": mask}
    given: Tensor = call.kernel(query, key, value, **named)
    return given[..., 0].float().mean(1)


def _over_text(call: Call, query: Tensor, key: Tensor, which: Tensor, members: Tensor) -> Tensor:
    """Shares of the text alone, head by head: of a long clip all heads would fill the memory."""
    mask, text = _rows_of(call, which), call.text()
    bias = None if mask is None else mask_as_numbers(mask)[..., text]
    total = query.new_zeros(len(query), query.shape[2], dtype=torch.float32)
    for head in range(query.shape[1]):
        logits = query[:, head].float() @ key[:, head].float().transpose(-1, -2) * call.scale
        if bias is not None:
            logits = logits + bias[:, min(head, bias.shape[1] - 1)]
        total += (logits.softmax(-1) @ members[..., None].float())[..., 0]
    return total / query.shape[1]


def _rows_of(call: Call, which: Tensor) -> Tensor | None:
    """The kernel's mask for the picture's rows of some samples."""
    if call.mask is None:
        return None
    mask = call.mask if call.mask.ndim == 4 else call.mask[:, None]
    mask = mask if len(mask) == 1 else mask[which]
    return mask if mask.shape[-2] == 1 else mask[..., call.image(), :]


class Running:
    """The mean of `shares` over all calls so far, "S N".

    Attributes:
        calls: Number of calls.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._sum: Tensor | None = None

    def add(self, found: Tensor) -> None:
        """Count a call's shares."""
        self._sum = found if self._sum is None else self._sum + found.to(self._sum.device)
        self.calls += 1

    def mean(self) -> Tensor:
        """The mean.

        Raises:
            ValueError: There was no call.
        """
        if self._sum is None:
            raise ValueError("no attention map was read: run the pipeline first")
        return self._sum / self.calls


def relative(mean: Tensor, frames: int = 1) -> Tensor:
    """Shares "S N" from 0 to 1 over each frame of a picture."""
    each = mean.unflatten(1, (frames, -1))
    low, high = each.amin(-1, keepdim=True), each.amax(-1, keepdim=True)
    scaled: Tensor = (each - low) / (high - low + _SMALL)
    return scaled.flatten(1)
