"""Flash attention's Python interface in plain torch, so that its paths run on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash

NAME = "flash_attention_2"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
) -> Tensor:
    """Attention "B Q H D"; the last query is aligned with the last key."""
    repeats = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    row = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    column = torch.arange(k.shape[1])
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if causal:
        seen &= column <= row
    if window_size[0] >= 0:
        seen &= column >= row - window_size[0]
    return torch.einsum("bhqk,bkhd->bqhd", logits.masked_fill(~seen, -torch.inf).softmax(-1), v)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float = 1.0,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
) -> Tensor:
    """The same for sequences of several lengths, one after the other: "total H D"."""
    outputs = []
    for sample in range(len(cu_seqlens_q) - 1):
        queries = slice(int(cu_seqlens_q[sample]), int(cu_seqlens_q[sample + 1]))
        keys = slice(int(cu_seqlens_k[sample]), int(cu_seqlens_k[sample + 1]))
        out = flash_attn_func(
            q[None, queries],
            k[None, keys],
            v[None, keys],
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
        )
        outputs.append(out[0])
    return torch.cat(outputs)


def use_flash(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch a model's text tower to flash attention, as if the package were there."""

    def load(implementation: str | None, *_: Any, **__: Any) -> tuple[Any, ...]:
        if implementation != NAME:
            raise ImportError(f"there is no kernel named {implementation!r}")
        return flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input

    monkeypatch.setattr(flash, "_lazy_imports", load)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    model.get_decoder().config._attn_implementation_internal = NAME
