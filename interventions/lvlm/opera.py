"""OPERA's over-trust penalty, as a function of attention weights; not a method to attach.

OPERA (Huang et al., arXiv 2311.17911, section 3; reference code shikiw/OPERA@61426ef,
opera_beam_search in its patched generation/utils.py) is a beam search of its own: each beam's
candidates are run one token ahead to see their attention, and when one column keeps collecting it
the beams go back to that token and choose another. Edits act inside one forward pass, and the beam
search of ``generate`` neither asks for a pass per candidate nor lets beams go back. What could be
attached would be another method by the same name, so the penalty alone is offered, for a search of
one's own.

With a the last layer's weights of a beam's response and one candidate, maximum over heads, rows
renormalised to 1, over the response's n positions:

    column score_j = 1e-7 prod_{i >= j} scale a_ij          penalty = max_j score_j
    n <= 10:         penalty = -(weight of the candidate's row on the image)
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORT = 10
"""Responses up to so many positions, the candidate's included, are rewarded for the image."""


def over_trust(
    weights: Tensor,
    image: Tensor,
    response: int,
    *,
    scale: float = 50.0,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """The penalty of each candidate, to be subtracted from its logit, and where it comes from.

    Args:
        weights: "... T T" attention weights of the last layer, maximum over heads, the candidate
            last; rows needn't sum to 1.
        image: Bool "T": image columns.
        response: Column at which the response begins.
        scale: Factor of weights in the product.
        half: Round column scores as the code does, which keeps them in float16: small ones vanish,
            and a column that many rows look at becomes infinite. Otherwise they are float32,
            and bounded by its largest number.

    Returns:
        Penalties "...", and the response columns of largest score "..." (from 0, the first of
        equals).

    Raises:
        ValueError: The response has no position.
    """
    n = weights.shape[-1] - response
    if n < 1:
        raise ValueError(f"the response begins at column {response} of {weights.shape[-1]}")
    rows = weights / weights.sum(-1, keepdim=True)
    block = scale * rows[..., response:, response:]
    lower = torch.ones(n, n, dtype=torch.bool, device=weights.device).tril()
    scores = 1e-7 * block.masked_fill(~lower, 1.0).float().prod(-2)
    scores = scores.half() if half else scores.clamp(max=torch.finfo(torch.float32).max)
    worst = scores.float().max(-1)
    if n > SHORT:
        return worst.values, worst.indices
    return -(rows[..., -1, :] * image).sum(-1), worst.indices


def rollback_column(columns: Tensor) -> Tensor:
    """The column that most candidates of a beam point at, the smallest of equals: "B" of "B C"."""
    return columns.mode(-1).values
