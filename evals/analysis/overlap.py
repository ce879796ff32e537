"""Overlap of two tasks' best heads, beside chance.

Of N heads the k best of each task share m: Jaccard ``m / (2k - m)``. If k heads were drawn twice,
each as likely as any other, m would be hypergeometric; the Jaccard to be expected by chance is the
mean over that, and p the chance of m or more. Some layers hold more of any task's best heads than
others, so chance does better than that, and p is too small rather than too large.
(Merullo et al., arXiv 2310.08744, compare circuits of two tasks likewise.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from regaze.evals.analysis.maps import HeadMap, Pairs


@dataclass(frozen=True)
class Overlap:
    """The overlap of two sets of heads.

    Attributes:
        measure: The measure by which they are the best.
        heads: N, those that both tasks measured.
        top: k.
        shared: The heads that are in both sets.
        jaccard: The sets' Jaccard index.
        chance: Expected Jaccard of sets drawn at random.
        p: Chance of so many shared heads or more.
    """

    measure: str
    heads: int
    top: int
    shared: Pairs
    jaccard: float
    chance: float
    p: float


def overlap(first: HeadMap, second: HeadMap, top: int) -> Overlap:
    """Compare the best heads of two maps of one model.

    Raises:
        ValueError: The maps are of different models or heads, or have fewer heads.
    """
    if first.values.shape != second.values.shape or first.tower != second.tower:
        sizes = " and ".join(
            f"{one.tower} {'x'.join(map(str, one.values.shape))}" for one in (first, second)
        )
        raise ValueError(f"{first.name} was measured in towers of different sizes: {sizes}")
    if bool((first.values.isnan() != second.values.isnan()).any()):
        raise ValueError(f"{first.name} was measured of different heads, so sets can't be compared")
    one, other = first.top(top), second.top(top)
    shared = tuple(head for head in one if head in other)
    heads = int((~first.values.isnan()).sum())
    drawn = hypergeom(heads, top, top)
    counts = np.arange(max(0, 2 * top - heads), top + 1)
    chance = float((drawn.pmf(counts) * counts / (2 * top - counts)).sum())
    p = float(drawn.sf(len(shared) - 1))
    jaccard = len(shared) / (2 * top - len(shared))
    return Overlap(first.name, heads, top, shared, jaccard, chance, p)
