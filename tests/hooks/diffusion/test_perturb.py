"""The perturbed attentions against literal maps, away from any model."""

from __future__ import annotations

import ast
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.diffusion.perturb import (
    as_query_heads,
    blend,
    blur_queries,
    gaussian,
    image_block_identity,
    mean_query,
)
from regaze.interventions.diffusion.seg import blur_matrix


def qkv(heads: int = 4, groups: int = 4, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, tokens, 8) for n in (heads, groups, groups)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(
    ("rows", "columns", "sigma"),
    [(8, 6, 1.0), (5, 9, 0.3), (4, 4, 50.0), (1, 6, 1.0), (2, 3, 2.0)],
)
def test_blurring_queries_blurs_logits(rows: int, columns: int, sigma: float) -> None:
    query, key, _ = qkv(tokens=rows * columns)
    blur = torch.kron(blur_matrix(rows, sigma), blur_matrix(columns, sigma))
    want = blur @ (query @ key.transpose(-1, -2))
    got = blur_queries(query, (rows, columns), sigma) @ key.transpose(-1, -2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_frames_are_blurred_apart() -> None:
    query, _, _ = qkv(tokens=24)
    together = blur_queries(query, (2, 4, 3), 1.0)
    apart = [blur_queries(query[:, :, part], (4, 3), 1.0) for part in (slice(12), slice(12, 24))]
    torch.testing.assert_close(together, torch.cat(apart, 2))


def test_the_kernel_is_odd_normal_and_no_longer_than_the_grid() -> None:
    assert [len(gaussian(sigma, 9)) for sigma in (0.01, 0.4, 1, 2, 1e9)] == [1, 3, 7, 9, 9]
    assert [len(gaussian(9.0, side)) for side in (1, 2, 3, 4, 12)] == [1, 3, 3, 5, 13]
    assert gaussian(1.5, 9).sum() == pytest.approx(1)


@pytest.mark.parametrize("image", [slice(0, 15), slice(5, 20)], ids=["image-text", "text-image"])
def test_the_image_block_becomes_the_identity(image: slice) -> None:
    query, key, value = qkv()
    scale = 8**-0.5
    logits = query @ key.transpose(-1, -2) * scale
    block = logits[:, :, image, image]
    others = ~torch.eye(15, dtype=torch.bool)
    logits[:, :, image, image] = block.masked_fill(others, -torch.inf)
    kernel = partial(F.scaled_dot_product_attention, scale=scale)
    got = image_block_identity(query, key, value, scale, image, kernel)
    torch.testing.assert_close(got, logits.softmax(-1) @ value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 20], ids=["a row for all", "each row its own"])
@pytest.mark.parametrize("image", [slice(0, 15), slice(5, 20)], ids=["image-text", "text-image"])
def test_a_mask_weighs_the_picture_s_tokens_too(image: slice, rows: int) -> None:
    query, key, value = qkv()
    mask = torch.randn(2, 1, rows, 20, generator=torch.Generator().manual_seed(1))
    logits = query @ key.transpose(-1, -2) * 0.5 + mask
    others = ~torch.eye(15, dtype=torch.bool)
    logits[:, :, image, image] = logits[:, :, image, image].masked_fill(others, -torch.inf)
    want = logits.softmax(-1) @ value

    def kernel(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor = mask) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=0.5)

    got = image_block_identity(query, key, value, 0.5, image, kernel, mask)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_image_block_survives_large_logits() -> None:
    query, key, value = qkv()
    got = image_block_identity(
        1e4 * query, key, value, 1.0, slice(0, 15), F.scaled_dot_product_attention
    )
    assert got.isfinite().all()


def test_a_strength_of_zero_keeps_every_bit() -> None:
    output, target, _ = qkv()
    u = torch.tensor([0.0, 0.5, 1.0, 0.0])[:, None, None]
    mixed = blend(output, target, u)
    assert torch.equal(mixed[:, [0, 3]], output[:, [0, 3]])
    assert torch.equal(mixed[:, 2], target[:, 2])
    nan = torch.full_like(target, torch.nan)
    assert torch.equal(blend(output, nan, u)[:, [0, 3]], output[:, [0, 3]])


def test_the_mean_query_leaves_padding_out() -> None:
    query, _, _ = qkv()
    visible = torch.ones(2, 1, 20, 1, dtype=torch.bool)
    visible[1, :, 15:] = False
    padded = query.clone()
    padded[1, :, 15:] = torch.nan
    got = mean_query(padded, visible)
    torch.testing.assert_close(got[0], query[0].mean(1, keepdim=True))
    torch.testing.assert_close(got[1], query[1, :, :15].mean(1, keepdim=True))


def test_grouped_heads_are_repeated_as_the_kernel_does() -> None:
    query, key, value = qkv(groups=2)
    want = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    spread = as_query_heads(key, 4), as_query_heads(value, 4)
    torch.testing.assert_close(F.scaled_dot_product_attention(query, *spread), want)


def test_the_formulas_need_torch_alone(root: Path) -> None:
    tree = ast.parse((root / "hooks/diffusion/perturb.py").read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {n.split(".")[0] for n in names} - sys.stdlib_module_names == {"torch"}
