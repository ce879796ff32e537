"""Maps of concepts, and losses on them, as pure tensor functions.

A concept is one or more tokens of the prompt; its map says how much each place of the image attends
to them. The steps are those of Attend-and-Excite's code (yuval-alaluf/Attend-and-Excite@163efdf),
which A-STAR builds on: of the mean map over layers and heads drop the start token and what follows
the prompt, multiply by 100, softmax over the tokens that are left, blur a little.

Shapes: text maps "F R C T" of one sample (frames, rows, columns, tokens of the text), concept maps
"N F R C".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """The meaning of one sample's text columns.

    Attributes:
        inner: Columns that compete for attention: the prompt's own.
        concepts: Positions of each concept's tokens in ``inner``.
    """

    inner: tuple[int, ...]
    concepts: tuple[tuple[int, ...], ...]


def concept_maps(maps: Tensor, columns: Columns, sharpen: float, sigma: float) -> Tensor:
    """The maps of a sample's concepts, "N F R C".

    Args:
        maps: "F R C T", mean attention over layers and heads.
        columns: The kinds of the T columns.
        sharpen: Factor before the softmax over the inner columns; 0 leaves the maps as they are.
        sigma: Width of the 3 x 3 blur; 0 doesn't blur.
    """
    inner = maps[..., list(columns.inner)]
    if sharpen:
        inner = (sharpen * inner).softmax(-1)
    found = torch.stack([inner[..., list(tokens)].mean(-1) for tokens in columns.concepts])
    return smooth(found, sigma) if sigma else found


def literal_maps(maps: Tensor, columns: Columns, sharpen: float, sigma: float) -> Tensor:
    """`concept_maps` place by place, as the formulas above read."""
    inner = torch.stack([maps[..., column] for column in columns.inner], -1)
    if sharpen:
        powers = (sharpen * (inner - inner.amax(-1, keepdim=True))).exp()
        inner = powers / powers.sum(-1, keepdim=True)
    found = []
    for tokens in columns.concepts:
        one = sum(
            (inner[..., token] for token in tokens),
            torch.zeros((), dtype=torch.float32, device="cpu"),
        ) / len(tokens)
        found.append(literal_blur(one, sigma) if sigma else one)
    return torch.stack(found)


def literal_blur(x: Tensor, sigma: float) -> Tensor:
    """A map "F R C" blurred 3 x 3, edges reflected."""
    line = [math.exp(-((i / (2 * sigma)) ** 2)) for i in (-1, 0, 1)]
    sides = [n if n > 1 else 0 for n in x.shape[-2:]]
    out = torch.zeros_like(x)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            rows, columns = (
                [abs(k) if k < n else 2 * (n - 1) - k for k in range(d, n + d)] if n else [0]
                for d, n in zip((i, j), sides, strict=True)
            )
            weight = line[i + 1] * line[j + 1] / sum(line) ** 2
            out = out + weight * x[:, rows][..., columns]
    return out


def smoothing_kernel(sigma: float, size: int = 3) -> Tensor:
    """The code's kernel, "K K": along each axis ``exp(-((x - mu) / (2 sigma))^2)``, sum 1.

    The factor 2 is inside the square, so its standard deviation is sqrt(2) sigma: 0.71 for the
    official 0.5.

    Args:
        sigma: The code's sigma, in places of the map.
        size: K, odd.
    """
    x = torch.arange(size, dtype=torch.float32, device="cpu") - (size - 1) / 2
    line = torch.exp(-((x / (2 * sigma)) ** 2))
    kernel = line[:, None] * line[None]
    return kernel / kernel.sum()


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur over rows and columns, edges reflected: "... R C" to the same."""
    kernel = smoothing_kernel(sigma).to(maps)[None, None]
    # A map one place wide has nothing to reflect.
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (1, 1, 1, 1), mode=mode)
    return F.conv2d(flat, kernel).reshape(maps.shape)


def excite_loss(concepts: Tensor) -> Tensor:
    """``max over concepts of max(0, 1 - peak)``: Attend-and-Excite, arXiv 2301.13826, eq. 1 and 2.

    Args:
        concepts: "N F R C".
    """
    return (1 - concepts.flatten(1).amax(1)).clamp(min=0).amax()


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """``sum min(a, b) / sum (a + b)`` over places: at most 1/2, although the paper calls it IoU.

    Args:
        a: "... F R C".
        b: The same.
    """
    places = (-3, -2, -1)
    return torch.minimum(a, b).sum(places) / (a + b).sum(places).clamp(min=1e-12)


def segregation_loss(concepts: Tensor) -> Tensor:
    """The sum of the overlaps of all pairs: A-STAR, arXiv 2306.14544, section 3.

    Args:
        concepts: "N F R C".
    """
    a, b = torch.triu_indices(len(concepts), len(concepts), 1, device=concepts.device)
    return overlap(concepts[a], concepts[b]).sum()


def retention_loss(concepts: Tensor, masks: Tensor) -> Tensor:
    """``sum over concepts of 1 - overlap(map, mask)``: A-STAR, section 3; each in [1/2, 1].

    Args:
        concepts: "N F R C", in [0, 1].
        masks: The same, 0 and 1: where each concept was, or shall be.
    """
    return (1 - overlap(concepts, masks)).sum()


def unit_range(maps: Tensor) -> Tensor:
    """Each map from its smallest value, 0, to its largest, 1."""
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    width = (high - low).clamp(min=1e-12)
    shape = (-1, *[1] * (maps.ndim - 1))
    return (maps - low.view(shape)) / width.view(shape)


def binarised(maps: Tensor, threshold: float | str) -> Tensor:
    """The region of high attention of each map, 0 and 1.

    Args:
        maps: "N F R C".
        threshold: Share of the way from a map's smallest to its largest value, or "otsu": the
            threshold of each map that sets its two sides furthest apart.
    """
    scaled = unit_range(maps)
    if threshold != "otsu":
        return (scaled >= float(threshold)).to(maps.dtype)
    return torch.stack([(one >= otsu(one)).to(maps.dtype) for one in scaled])


def otsu(values: Tensor) -> Tensor:
    """Otsu's threshold: the value from which upwards the variance between both sides is largest."""
    x = values.flatten().sort().values
    below = torch.arange(1, len(x), device=x.device)
    total = x.cumsum(0)[:-1]
    means = total / below, (x.sum() - total) / (len(x) - below)
    between = below * (len(x) - below) * (means[1] - means[0]) ** 2
    return x[between.argmax() + 1]


def resized(masks: Sequence[Sequence[Sequence[float]]], rows: int, columns: int) -> Tensor:
    """Masks of any size on a grid, "N 1 R C" of 0 and 1: a place is in if half of it is."""
    given = torch.tensor(masks, dtype=torch.float32, device="cpu")[:, None]
    return (F.interpolate(given, (rows, columns), mode="area") >= 0.5).float()
