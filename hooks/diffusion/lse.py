"""Attention in parts: one query on several sets of columns, put together by log-sum-exp.

With (O_a, l_a) the output and the log of the summed exponentials on columns a, and (O_b, l_b) on
others, attention on both is ``O_a + sigmoid(l_b - l_a) (O_b - O_a)``: exact, so that what several
texts share with one picture is computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_Part = tuple[Tensor, Tensor]


def with_lse(query: Tensor, key: Tensor, value: Tensor, scale: float) -> _Part | None:
    """Attention and its log-sum-exp, "B H N D" and "B H N"; None if no kernel tells it here.

    Args:
        query: "B H N D".
        key: "B H K D".
        value: "B H K D".
        scale: Factor of the logits.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return None  # These kernels give no gradient through the log-sum-exp.
    aten, kind = torch.ops.aten, query.device.type
    if kind == "cpu" and key.shape[1] == query.shape[1]:
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, scale=scale
        )
        return found[0], found[1]
    if kind == "cuda" and key.shape[1] == query.shape[1] and query.shape[-1] % 8 == 0:
        if query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
            found = aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, False, False, scale=scale
            )
        else:
            found = aten._scaled_dot_product_efficient_attention(
                query, key, value, None, True, scale=scale
            )
        return found[0], found[1][:, :, : query.shape[2]]
    return None


def together(one: _Part, other: _Part) -> Tensor:
    """Attention on the columns of both parts."""
    share = torch.sigmoid(other[1].float() - one[1].float())[..., None]
    return torch.lerp(one[0].float(), other[0].float(), share).to(one[0].dtype)
