"""Attention by blocks equals masked attention, whatever computes it, and holds no map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.utils._python_dispatch import TorchDispatchMode

from regaze.hooks.diffusion import blocks
from regaze.hooks.diffusion.blocks import Blocks, attend


def drawn(heads: int, tokens: int, size: int, share: float = 0.4) -> Blocks:
    number = -(-tokens // size)
    made = torch.Generator().manual_seed(0)
    keep = torch.rand(heads, number, number, generator=made) < share
    return Blocks(keep | torch.eye(number, dtype=torch.bool), size, tokens)


def inputs(groups: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        torch.randn(2, heads, tokens, 8, generator=made) for heads in (4, groups, groups)
    )


def kernel(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True, **more)


@pytest.mark.parametrize("by", ["gather", "flex"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("heads", [1, 4])
def test_blocks_equal_masked_attention(
    by: Any, groups: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(blocks, "_flex", lambda: flex.flex_attention)
    part, given = drawn(heads, 70, 8), inputs(groups, 70)
    want = kernel(*given, attn_mask=part.mask()[None])
    got = attend(*given, part, kernel, by=by)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    assert (got - kernel(*given)).abs().max() > 0.01
    assert part.density == pytest.approx(part.mask().double().mean().item())


@pytest.mark.parametrize("shape", [(2, 1, 1, 70), (1, 4, 70, 70)])
def test_masks_of_the_call_hold_too(shape: tuple[int, ...]) -> None:
    part, given = drawn(4, 70, 8), inputs(4, 70)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.7
    mask |= torch.eye(70, dtype=torch.bool) if shape[2] > 1 else torch.arange(70) % 8 == 0
    want = kernel(*given, attn_mask=part.mask()[None] & mask)
    got = attend(*given, part, kernel, mask=mask)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_all_blocks_are_the_kernel_bit_for_bit() -> None:
    given = inputs(4, 70)
    whole = Blocks(torch.ones(1, 9, 9, dtype=torch.bool), 8, 70)
    assert whole.full and whole.density == 1
    assert torch.equal(attend(*given, whole, kernel), kernel(*given))


class _Largest(TorchDispatchMode):
    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor):
                self.most = max(self.most, one.numel())
        return made


def test_nothing_is_as_large_as_a_map() -> None:
    part, given = drawn(1, 1024, 32, 0.1), inputs(4, 1024)
    query, key, value = given
    with _Largest() as seen:  # type: ignore[no-untyped-call]
        attend(query, key, value, part, kernel)
    assert seen.most <= given[0].numel() < 1024**2


def test_gradients_flow() -> None:
    part = drawn(1, 40, 8)
    given = query, key, value = [x.requires_grad_() for x in inputs(4, 40)]
    got = torch.autograd.grad(attend(query, key, value, part, kernel).sin().sum(), given)
    want = torch.autograd.grad(kernel(*given, attn_mask=part.mask()[None]).sin().sum(), given)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_masks_that_do_not_fit_say_why() -> None:
    with pytest.raises(ValueError, match="70 tokens make 9 blocks of 8, and the mask has"):
        Blocks(torch.ones(1, 8, 8, dtype=torch.bool), 8, 70)
    with pytest.raises(ValueError, match="keeps no block of columns"):
        Blocks(torch.zeros(1, 2, 2, dtype=torch.bool), 8, 16)
