from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from regaze.evals.scoring import statistics
from regaze.evals.scoring.statistics import (
    Change,
    McNemar,
    change,
    draw_times,
    estimate,
    holm,
    mcnemar,
    ratio,
)

Array = NDArray[np.float64]


def test_mcnemar_without_flips_finds_nothing() -> None:
    assert mcnemar(0, 0) == McNemar(p=1.0, mid_p=1.0)


def test_mcnemar_of_one_and_five_flips_is_known_exactly() -> None:
    found = mcnemar(1, 5)
    assert found.p == pytest.approx(0.21875, abs=1e-12)
    assert found.mid_p == pytest.approx(0.21875 - 6 / 64, abs=1e-12)


def test_mcnemar_is_the_same_in_both_directions() -> None:
    assert mcnemar(3, 17) == mcnemar(17, 3)


def test_mcnemar_of_a_draw_is_one() -> None:
    assert mcnemar(4, 4).p == pytest.approx(1.0)
    assert mcnemar(4, 4).mid_p == pytest.approx(1.0)


def test_mcnemar_sums_the_binomial_tail() -> None:
    for lost, gained in product(range(8), range(8)):
        n, fewer = lost + gained, min(lost, gained)
        tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
        assert mcnemar(lost, gained).p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def test_holm_multiplies_by_the_number_of_tests_still_open() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_never_exceeds_one_and_keeps_the_order_of_its_input() -> None:
    assert holm([0.9, 0.5, 0.001]) == pytest.approx([1.0, 1.0, 0.003])


def test_holm_leaves_undefined_p_values_out_of_the_count() -> None:
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.02)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


def test_a_ratio_with_zero_below_is_undefined_and_the_others_stay() -> None:
    np.testing.assert_array_equal(
        ratio(np.array([1.0, 0.0, 2.0]), [2, 0, 0]), [0.5, np.nan, np.nan]
    )
    assert float(ratio(3, 4)) == 0.75


def drawn(clusters: int, draws: int, seed: int = 0) -> Array:
    return np.concatenate([*draw_times(clusters, draws, seed)])


def summed(counts: Array, draws: int) -> Array:
    """Sums over drawn clusters."""
    return drawn(len(counts), draws) @ counts


def test_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two clusters"):
        drawn(1, 10)


def test_replicates_draw_whole_clusters_with_replacement() -> None:
    times = drawn(2, 400)
    assert set(map(tuple, times.tolist())) == {(2, 0), (1, 1), (0, 2)}
    share = (times[:, 0] == 1).mean()
    assert 0.4 < share < 0.6


def test_the_draw_follows_its_seed_and_not_the_size_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = drawn(10, 600, seed=7)
    assert times.shape == (600, 10)
    np.testing.assert_array_equal(times.sum(1), 10)
    assert (times != drawn(10, 600, seed=8)).any()
    monkeypatch.setattr(statistics, "_BLOCK", 7)
    np.testing.assert_array_equal(drawn(10, 600, seed=7), times)


def test_identical_systems_differ_by_exactly_nothing() -> None:
    replicas = np.repeat(np.linspace(0.2, 0.7, 99)[:, None], 2, axis=1)
    assert change(np.array([[0.5], [0.5]]), replicas) == Change(0.5, 0.5, 0.0, 0.0, 0.0, 1.0, 0)


def test_p_counts_the_replicates_on_the_far_side_of_zero() -> None:
    deltas = np.array([-0.1, *[0.2] * 98])
    found = change(np.array([[0.0], [0.2]]), np.stack([np.zeros(99), deltas], axis=1))
    assert found.p == pytest.approx(2 * (1 + 1) / (99 + 1))


def test_p_never_reaches_zero() -> None:
    replicas = np.stack([np.zeros(999), np.ones(999)], axis=1)
    assert change(np.array([[0.0], [1.0]]), replicas).p == pytest.approx(2 / 1000)


def test_undefined_replicates_are_dropped_and_counted() -> None:
    values = np.array([0.0, np.nan, 1.0, np.nan, 2.0])
    found = estimate(np.array([1.0]), values)
    assert found.dropped == 2
    assert (found.low, found.high) == pytest.approx((0.05, 1.95))
    paired = change(np.array([[0.0], [1.0]]), np.stack([np.zeros(5), values], axis=1))
    assert paired.dropped == 2
    assert (paired.low, paired.high) == pytest.approx((0.05, 1.95))


def test_nothing_but_undefined_replicates_gives_an_undefined_interval() -> None:
    found = change(np.array([[np.nan], [1.0]]), np.full((10, 2), np.nan))
    assert found.dropped == 10
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.p)


def test_the_interval_has_the_width_that_theory_gives() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=400)
    sums = summed(np.stack([values, np.ones(400)], axis=1), 4000)
    found = estimate(np.array([values.mean()]), sums[:, 0] / sums[:, 1])
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def clustered(rng: np.random.Generator, gain: float) -> Array:
    """Right answers of two systems to six questions about each of 60 images of uneven difficulty.

    The second system is better by ``gain`` in expectation; questions of an image go together.
    """
    easy = rng.beta(1.0, 1.0, size=(60, 1)) * (1 - gain)
    drawn = rng.random((60, 6))
    return np.stack([(drawn < easy).sum(1), (drawn < easy + gain).sum(1), np.full(60, 6)], axis=1)


def test_intervals_of_the_difference_cover_the_truth_about_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        sums = summed(clustered(rng, gain=0.1), 400)
        values = sums[:, :2] / sums[:, 2:]
        found = change(values.mean(0)[:, None], values)
        covered += found.low <= 0.1 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_resampling_items_instead_of_images_would_promise_too_much() -> None:
    counts = clustered(np.random.default_rng(5), gain=0.0)
    items = np.concatenate([np.repeat([[1, 1], [0, 1]], [k, 6 - k], axis=0) for k in counts[:, 0]])
    by_image = summed(counts[:, [0, 2]], 1000)
    by_item = summed(items.astype(float), 1000)
    widths = [np.ptp(np.percentile(s[:, 0] / s[:, 1], (2.5, 97.5))) for s in (by_image, by_item)]
    assert widths[0] > 1.3 * widths[1]
