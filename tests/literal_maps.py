"""Guidance by perturbation the literal way: N x N maps, and a whole second pass of the whole batch.

Nothing here is shared with the package: maps are built, edited and multiplied with the values, and
the branches' rows are known from the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_pipelines import COLUMNS, HEIGHT, TEXT, Family
from torch import Tensor

Edit = Callable[[str, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``edit(module, query, logits, bias, map) -> map``, all "B H N N" but the query, "B H N D"."""


def bias_of(mask: Tensor | None) -> Tensor:
    """A kernel's mask as numbers to add to logits."""
    if mask is None:
        return torch.zeros(1)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask


def target_map(kind: str, query: Tensor, logits: Tensor, bias: Tensor, a: Tensor, key: Tensor,
               scale: float, tau: float = 1.0) -> Tensor:  # fmt: skip
    """What a map is blended with: see `regaze.interventions.diffusion.soft_pag`."""
    rows = a.shape[-1]
    if kind == "identity":
        return torch.eye(rows).expand_as(a)
    if kind == "uniform":
        return (torch.zeros_like(a) + bias).softmax(-1)
    if kind == "temperature":
        return ((logits + bias) / tau).softmax(-1)
    weight = (bias > -1e4).float().expand(len(query), 1, 1, rows)[:, 0, 0] if bias.ndim > 1 else (
        torch.ones(len(query), rows))  # fmt: skip
    mean = torch.einsum("bhnd,bn->bhd", query, weight) / weight.sum(1)[:, None, None]
    line = torch.einsum("bhd,bhnd->bhn", mean, key) * scale
    return (line[:, :, None] + bias).softmax(-1).expand_as(a)


def blur_matrix(rows: int, columns: int, sigma: float) -> Tensor:
    """The N x N matrix that blurs a grid, entry by entry."""

    def line(side: int) -> Tensor:
        length = -int(-6 * sigma // 1) + 1
        length -= 1 - length % 2
        length = min(length, side + (1 - side % 2))
        half = length // 2
        weights = torch.tensor([-0.5 * (x / sigma) ** 2 for x in range(-half, half + 1)]).exp()
        matrix = torch.zeros(side, side)
        for i in range(side):
            for offset, weight in zip(range(-half, half + 1), weights / weights.sum(), strict=True):
                j = abs(i + offset)
                matrix[i, j if j < side else 2 * (side - 1) - j] += weight
        return matrix

    return torch.kron(line(rows), line(columns))


def image_tokens(name: str, tokens: int, order: str) -> slice:
    """Where the image is in a call of a family's denoiser."""
    if order == "image-text":
        return slice(0, tokens - TEXT)
    return slice(TEXT, tokens) if order == "text-image" else slice(0, tokens)


def grid_of(tokens: int) -> tuple[int, int, int]:
    """(frames, rows, columns) of the tiny pipelines' image tokens."""
    for k in (1, 2):
        rows, columns = HEIGHT // k, COLUMNS // k
        for frames in (1, 2):
            if frames * rows * columns == tokens:
                return frames, rows, columns
    raise AssertionError(tokens)


def literal_kernel(edit: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """A stand-in for torch's kernel that builds the map and lets it be edited."""
    stock = F.scaled_dot_product_attention

    def kernel(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> Tensor:  # fmt: skip
        if query.shape[-2] != key.shape[-2]:
            return stock(query, key, value, attn_mask=attn_mask, scale=scale)
        factor = scale or query.shape[-1] ** -0.5
        logits = query @ key.transpose(-1, -2) * factor
        bias = bias_of(attn_mask)
        a = (logits + bias).softmax(-1)
        return edit(name, query, key, logits, bias, a, factor) @ value

    return kernel


@contextmanager
def edited(denoiser: Any, names: Sequence[str], edit: Callable[..., Tensor]) -> Iterator[None]:
    """Edit the maps of some attention modules of a denoiser."""
    with pytest.MonkeyPatch.context() as patch:
        stock = F.scaled_dot_product_attention
        handles = []
        for name in names:
            kernel = literal_kernel(edit, name)
            module = denoiser.get_submodule(name)
            handles += [
                module.register_forward_pre_hook(
                    lambda m, a, k=kernel: patch.setattr(F, "scaled_dot_product_attention", k)
                ),
                module.register_forward_hook(
                    lambda m, a, o: patch.setattr(F, "scaled_dot_product_attention", stock)
                ),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def guided_literally(
    pipe: Any, family: Family, guided: bool, names: Sequence[str], edit: Callable[..., Tensor],
    scale: float,
) -> Iterator[None]:  # fmt: skip
    """Guide a pipeline by a second pass of its denoiser with literally edited maps."""
    denoiser = getattr(pipe, family.denoiser)
    stock = denoiser.forward
    waiting: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        again = (lambda x: (x,)) if isinstance(output, tuple) else type(output)
        plain = output[0]
        if waiting:  # The unconditional call, which follows the conditional one.
            return again(plain + waiting.pop())
        with edited(denoiser, names, edit):
            perturbed = stock(*args, **kwargs)[0]
        delta = scale * (plain - perturbed)
        if guided and family.halves:
            delta = delta.chunk(2)[1].repeat(2, *[1] * (delta.ndim - 1))
        elif guided:
            waiting.append(delta)
        return again(plain + delta)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward
