"""Contrasts of next-token scores and their plausibility cut, in plain tensors.

What VCD, ICD, AvisC, M3ID and PAI's second half share: scores of the model as it is, l, moved away
from those of a worse run of it, l', and a cut that keeps unlikely tokens out (Li et al., arXiv
2210.15097, equation 2). Combined in float32, before any processor or warper of ``generate``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regaze.hooks.edits import Edit
from regaze.hooks.passes import Pass


def cut(scores: Tensor, clean: Tensor, beta: float) -> Tensor:
    """Put -inf where a token's probability is below ``beta`` times the likeliest one's.

    Ties with that bound stay; 0 cuts nothing, 1 leaves the likeliest.

    Args:
        scores: The scores to cut, "... V".
        clean: Scores of the model as it is, "... V".
        beta: Share, 0 to 1.
    """
    if beta == 0:
        return scores
    floor = clean.amax(-1, keepdim=True) + math.log(beta)
    return scores.masked_fill(clean < floor, -torch.inf)


def contrast(clean: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:
    """``(1 + alpha) l - alpha l'``, cut.

    Args:
        clean: l, "... V".
        other: l', "... V".
        alpha: Strength; 0 leaves l, cut.
        beta: Share of the likeliest token's probability, as in `cut`.
    """
    return cut((1 + alpha) * clean - alpha * other, clean, beta)


def guide(clean: Tensor, other: Tensor, gamma: float | Tensor, beta: float = 0.1) -> Tensor:
    """``gamma (log p - log p') + log p'``, cut; ``gamma = 1`` is log p, uncut, as in PAI's code.

    Args:
        clean: Scores of the model as it is, "... V".
        other: Scores of its worse run, "... V".
        gamma: Strength; a tensor that broadcasts is never taken for 1.
        beta: Share of the likeliest token's probability, as in `cut`.
    """
    log_p = clean.log_softmax(-1)
    if not isinstance(gamma, Tensor) and gamma == 1:
        return log_p
    log_other = other.log_softmax(-1)
    return cut(gamma * (log_p - log_other) + log_other, log_p, beta)


def with_images(changed: Tensor, scores: Tensor, pass_: Pass) -> Tensor:
    """Changed scores "B R V" of samples with an image; those of others stay."""
    has_image = pass_.tokens.has_image.to(scores.device)[:, None, None]
    return torch.where(has_image, changed, scores)


def contrasted(alpha: float, beta: float, scores: Tensor, other: Tensor, pass_: Pass) -> Tensor:
    """`contrast` where a prompt has an image; for `Branch.combine`."""
    return with_images(contrast(scores, other, alpha, beta), scores, pass_)


def literal_cut(scores: Tensor, clean: Tensor, beta: float) -> Tensor:
    """`cut` as papers write it, on probabilities."""
    p = clean.softmax(-1)
    return scores.masked_fill(p < beta * p.amax(-1, keepdim=True), -torch.inf)


class CutEdit(Edit):
    """The cut alone, as a control of the methods that have it.

    Args:
        beta: Share of the likeliest token's probability, as in `cut`; 0 does nothing.
    """

    def __init__(self, beta: float) -> None:
        super().__init__(())
        self.beta = beta

    @property
    def scores(self) -> bool:
        """True if any scores are cut."""
        return self.beta > 0

    def edit_scores(self, scores: Tensor, pass_: Pass) -> Tensor:
        """Cut the scores of samples with an image."""
        return with_images(cut(scores, scores, self.beta), scores, pass_)


def check_seed(method: str, seed: object) -> None:
    """Check that a field is a whole number that can seed a generator.

    Raises:
        ValueError: It isn't.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"{method}: seed must be a whole number from 0 to 2^31 - 1, got {seed!r}")


def require_image(method: str, pass_: Pass, what: str) -> None:
    """Check that a contrast has something to contrast with.

    Raises:
        ValueError: No sample has an image.
    """
    if not bool(pass_.tokens.has_image.any()):
        raise ValueError(
            f"{method} contrasts the picture with {what}, and this prompt has no picture; give it "
            "one, or detach"
        )
