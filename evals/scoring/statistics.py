"""Statistics of paired scores: bootstrap over clusters, McNemar's test, Holm's method.

Items about one image are not independent, so images (clusters) are resampled, never items, and
metrics are computed from resampled sums: F1 or CHAIR_i are treated exactly like an accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DRAWS = 10_000
_ENDS = (2.5, 97.5)
_BLOCK = 2_500


@dataclass(frozen=True)
class Seeds:
    """A metric, or its change, under each seed of sampled decoding.

    Attributes:
        values: One per seed.
        sd: Their standard deviation, with n - 1 below.
        low: The smallest.
        high: The largest.
    """

    values: tuple[float, ...]
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A metric of one system.

    Attributes:
        value: From all items, the mean over the seeds; NaN where undefined.
        low: Lower end of the 95 % percentile interval.
        high: Upper end.
        dropped: Bootstrap replicates left out because the metric is undefined in them; above 1 %
            of the draws the interval is doubtful.
        seeds: The metric's differences between seeds; None where there is one.
    """

    value: float
    low: float
    high: float
    dropped: int
    seeds: Seeds | None = None


@dataclass(frozen=True)
class Change:
    """A metric of two systems on the same items.

    Attributes:
        baseline: Value of the first system; NaN where undefined.
        other: Value of the second.
        delta: ``other - baseline``.
        low: Lower end of the delta's 95 % percentile interval.
        high: Upper end.
        p: Two-sided bootstrap p-value of a delta of zero.
        dropped: As in `Estimate`.
        seeds: Deltas by seed; None where there is one.
        p_holm: ``p`` adjusted for all conditions and groups tested beside it; None where it
            isn't one of several tests.
    """

    baseline: float
    other: float
    delta: float
    low: float
    high: float
    p: float
    dropped: int
    seeds: Seeds | None = None
    p_holm: float | None = None

    @property
    def moved(self) -> bool:
        """True if any item moved it; an undefined change didn't."""
        return not math.isnan(self.delta) and (self.delta != 0 or self.low != self.high)

    @property
    def excludes_zero(self) -> bool:
        """True if the interval says that the two systems differ."""
        return self.low > 0 or self.high < 0

    def figures(self) -> dict[str, float | None]:
        """What tables show of it, as stored results hold it."""
        fields = ("delta", "low", "high", "p", "p_holm")
        return {name: rounded(getattr(self, name)) for name in fields}


def rounded(value: float | None) -> float | None:
    """A value to six digits, as stored results hold it; None where it is undefined."""
    return None if value is None or math.isnan(value) else round(value, 6)


@dataclass(frozen=True)
class McNemar:
    """Exact test on flips. It takes items as independent, which items of one image are not.

    Attributes:
        p: Exact two-sided p-value.
        mid_p: The same with half weight for the observed table: less conservative.
    """

    p: float
    mid_p: float


def draw_times(clusters: int, draws: int, seed: int) -> Iterator[Array]:
    """The times each cluster is drawn in each replicate, "block clusters", some at a time.

    Blocks bound the memory; the draw doesn't depend on them.

    Raises:
        ValueError: Fewer than two clusters.
    """
    require_clusters(clusters)
    rng = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - start)
        drawn = rng.integers(clusters, size=(size, clusters))
        cells = drawn + clusters * np.arange(size)[:, None]
        times = np.bincount(cells.ravel(), minlength=size * clusters)
        yield times.reshape(size, clusters).astype(np.float64)


def require_clusters(clusters: int) -> None:
    """Check that there is something to resample.

    Raises:
        ValueError: Fewer than two clusters.
    """
    if clusters < 2:
        raise ValueError(
            f"a bootstrap needs at least two clusters (images), got {clusters}: score more images"
        )


def estimate(by_seed: Array, replicas: Array) -> Estimate:
    """Summary of a bootstrap.

    Args:
        by_seed: Values from all items, one per seed.
        replicas: Values of the replicates, the mean over the seeds, shape ``(draws,)``.
    """
    return Estimate(float(by_seed.mean()), *_interval(replicas), spread(by_seed))


def change(by_seed: Array, replicas: Array) -> Change:
    """Summary of a paired bootstrap.

    Args:
        by_seed: Values of the two systems from all items, shape ``(2, seeds)``.
        replicas: Their values in each replicate, the mean over the seeds, shape ``(draws, 2)``.
    """
    baseline, other = by_seed.mean(1)
    deltas = replicas[:, 1] - replicas[:, 0]
    low, high, dropped = _interval(deltas)
    kept = deltas[np.isfinite(deltas)]
    tail = min((kept <= 0).sum(), (kept >= 0).sum())
    return Change(
        baseline=float(baseline),
        other=float(other),
        delta=float(other - baseline),
        low=low,
        high=high,
        p=min(1.0, 2 * float(tail + 1) / (kept.size + 1)) if kept.size else math.nan,
        dropped=dropped,
        seeds=spread(by_seed[1] - by_seed[0]),
    )


def spread(by_seed: Array) -> Seeds | None:
    """The spread of values between seeds; None for a single one."""
    if len(by_seed) < 2:
        return None
    low, high, sd = (float(v) for v in (by_seed.min(), by_seed.max(), by_seed.std(ddof=1)))
    return Seeds(tuple(map(float, by_seed)), sd, low, high)


def mcnemar(lost: int, gained: int) -> McNemar:
    """McNemar's exact test for the numbers of items that only one of two systems got right."""
    n, fewer = lost + gained, min(lost, gained)
    if n == 0:
        return McNemar(1.0, 1.0)
    # The tail of n coin flips, from its largest term down. Importing scipy's takes a second.
    likely = term = _share(fewer, n)
    at_most = 0.0
    for k in range(fewer, -1, -1):
        at_most += term
        term *= k / (n - k + 1)
        if term < at_most * 1e-18:
            break
    return McNemar(p=min(1.0, 2 * at_most), mid_p=min(1.0, 2 * at_most - likely))


def _share(k: int, n: int) -> float:
    """The probability of exactly k heads in n flips of a coin."""
    if n <= 10_000:
        return float(math.comb(n, k) / 2**n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways - n * math.log(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests, in the given order; NaN stays NaN."""
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = running
    return adjusted


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Array:
    """Elementwise quotient; NaN where the denominator is zero."""
    above, below = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    quotient = np.full(below.shape, np.nan)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient


def _interval(values: Array) -> tuple[float, float, int]:
    """Ends of the 95 % percentile interval, and how many values were undefined."""
    kept = values[np.isfinite(values)]
    if not kept.size:
        return math.nan, math.nan, values.size
    low, high = np.percentile(kept, _ENDS)
    return float(low), float(high), values.size - kept.size
