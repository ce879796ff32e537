"""ILVAD's numbers, from attention weights. Pure functions; see `ilvad`.

B samples, H heads, R rows, J patches, K columns, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regaze.interventions.lvlm.gift_gaze import normalise

ALIKE = 1e-4  # Heads whose sums differ by less count as alike.


def best_half(sums: Tensor) -> Tensor:
    """The heads in the half with the largest sums: "B H R" of 0 and 1.

    Among heads alike (all of them in a window of text alone) the first ones are in that half.
    """
    order = (sums / ALIKE).round().argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(sums).scatter(1, order[:, : sums.shape[1] // 2], 1.0)


def seen_patches(weights: Tensor) -> Tensor:
    """Mean map of the half of the heads that look at the image most: "B H R J" to "B R J"."""
    heads = best_half(weights.sum(-1))
    return (weights * heads[..., None]).sum(1) / (weights.shape[1] // 2)


def came_into_view(means: Tensor, tau: float) -> Tensor:
    """S of each patch.

    Args:
        means: m of each layer, "L J".
        tau: Threshold, as in `ILVAD`.

    Returns:
        "J", in [0, 1]; zeros if no patch came into view more often than another.
    """
    view = means > tau * means.mean(-1, keepdim=True)
    came = (view[1:] & ~view[:-1]).sum(0).float()
    mean = means.mean(0)
    return normalise(came * (mean > mean.mean()))


def look(weights: Tensor, log_m: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The heads that look at M, "B H R" of 0 and 1, and what a layer adds to the ground, "B R".

    Args:
        weights: "B H R K".
        log_m: log M on the image, 0 elsewhere; broadcastable.
        image: Bool, likewise.
    """
    gain = (weights * log_m).sum(-1)
    heads = best_half(gain / ((weights * image).sum(-1) + 1e-8))
    return heads, (gain * heads).sum(1) / (weights.shape[1] // 2)


def text_factors(ground: Tensor, known: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The factor g of each text column, 1 where there is none, and the clamped ground: "B K" each.

    Args:
        ground: "B K".
        known: Bool "B K": the columns that have one.
        beta: Base of the text's factor, as in `ILVAD`.
    """
    count = known.sum(-1, keepdim=True)
    low = ground.masked_fill(~known, torch.inf).amin(-1, keepdim=True)
    high = ground.masked_fill(~known, -torch.inf).amax(-1, keepdim=True)
    mean = (ground * known).sum(-1, keepdim=True) / count.clamp(min=1)
    spread = ((ground - mean) * known).square().sum(-1, keepdim=True)
    std = (spread / (count - 1).clamp(min=1)).sqrt()
    held = torch.maximum(torch.minimum(ground, mean + 3 * std), mean - 3 * std)
    acts = known & (high > low)
    factors = torch.where(acts, (held - low) / (high - low) + beta, 1.0)
    return factors, torch.where(acts, held, ground)
