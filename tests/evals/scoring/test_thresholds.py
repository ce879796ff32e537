from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from popes import flip, pope, right
from scipy.stats import mannwhitneyu

from regaze.evals.scoring.compare import assess
from regaze.evals.scoring.statistics import Change
from regaze.evals.scoring.tallies import System
from regaze.evals.scoring.thresholds import AUC, BEST, Ranking, reading
from regaze.evals.task import POOLED, Item

Margins = dict[str, float]


def items(n: int = 60) -> list[Item]:
    return [Item(str(i), f"{i // 3}.jpg", "?", target="yes" if i % 2 else "no") for i in range(n)]


def ranking(asked: list[Item], *margins: NDArray[np.float64]) -> Ranking:
    names = [dict(zip((i.id for i in asked), each.tolist(), strict=True)) for each in margins]
    clusters = np.array([int(item.cluster.split(".")[0]) for item in asked])
    return Ranking(asked, names, clusters, np.zeros(len(asked), np.int64))


def tied(margin: NDArray[np.float64], ties: str) -> NDArray[np.float64]:
    """Margins with ties between some, or as a method leaves them that rules answers out."""
    if ties == "ruled out":
        return np.where(np.abs(margin) > 0.7, np.inf * margin, margin)
    return margin.round(0) if ties == "some" else margin


@pytest.mark.parametrize("ties", ["none", "some", "ruled out"])
def test_auc_is_the_rank_statistic_with_ties_half(ties: str) -> None:
    rng = np.random.default_rng(1)
    asked = items()
    yes = np.array([item.target == "yes" for item in asked])
    margin = rng.normal(size=60) + yes
    margin = tied(margin, ties)
    found = ranking(asked, margin).scored(np.ones((1, 20)))
    expected = mannwhitneyu(margin[yes], margin[~yes]).statistic / (yes.sum() * (~yes).sum())
    assert found[AUC][0, 0, 0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", ["none", "some", "ruled out"])
def test_best_accuracy_is_the_best_of_all_cuts(ties: str) -> None:
    rng = np.random.default_rng(7)
    asked = items()
    yes = np.array([item.target == "yes" for item in asked])
    margin = rng.normal(size=60) + yes
    margin = tied(margin, ties)
    found = ranking(asked, margin).scored(np.ones((1, 20)))[BEST][0, 0, 0]
    cuts = [-math.inf, *margin]
    assert found == max(float(((margin > cut) == yes).mean()) for cut in cuts)


def test_a_cluster_drawn_twice_counts_twice() -> None:
    rng = np.random.default_rng(2)
    asked = items(12)
    margin = rng.normal(size=12).round(1)
    drawn = ranking(asked, margin).scored(np.array([[2.0, 0.0, 1.0, 1.0]]))
    places = [0, 1, 2, 0, 1, 2, 6, 7, 8, 9, 10, 11]
    copied = [
        Item(str(n), f"{n // 3}.jpg", "?", target=asked[i].target) for n, i in enumerate(places)
    ]
    by_hand = ranking(copied, margin[places]).scored(np.ones((1, 4)))
    for name in (AUC, BEST):
        assert drawn[name][0, 0, 0] == pytest.approx(by_hand[name][0, 0, 0], abs=1e-12)


def test_perfect_and_inverted_margins_are_the_ends() -> None:
    asked = items(12)
    perfect = np.array([1.0 if item.target == "yes" else -1.0 for item in asked])
    found = ranking(asked, perfect, -perfect).scored(np.ones((1, 4)))
    assert found[AUC][0, :, 0].tolist() == [1, 0]
    assert found[BEST][0, 0, 0] == 1


def test_a_group_with_one_kind_of_answer_has_no_ranking() -> None:
    asked = [Item(str(i), f"{i}.jpg", "?", target="no") for i in range(4)]
    found = ranking(asked, np.arange(4.0)).scored(np.ones((1, 4)))
    assert math.isnan(found[AUC][0, 0, 0])
    assert math.isnan(found[BEST][0, 0, 0])


def margins(noise: float, seed: int = 0, images: int = 40) -> Margins:
    """Yes items one higher than no items, on the average."""
    rng = np.random.default_rng(seed)
    return {
        item.id: float((item.target == "yes") - 0.9 + noise * rng.normal())
        for item in pope(images).items
    }


def said(by: Margins) -> System:
    return System([{key: "yes" if margin > 0 else "no" for key, margin in by.items()}], by)


def test_a_threshold_that_moved_is_told_from_better_answers() -> None:
    task, before = pope(80), margins(0.4, images=80)
    shifted = {key: margin + 0.4 for key, margin in before.items()}
    sharper = {item.id: before[item.id] + (item.target == "yes") for item in task.items}
    found = assess(task, task.items, [said(m) for m in (before, shifted, sharper)], draws=400)
    (_, moved), (_, better) = found[1:]
    group = moved.groups["random"].metrics
    assert group["accuracy"].low > 0
    assert (group[AUC].delta, group[AUC].low, group[AUC].high) == (0, 0, 0)
    assert (group[BEST].delta, group[BEST].low, group[BEST].high) == (0, 0, 0)
    assert reading(group) == "threshold"
    assert reading(better.groups["random"].metrics) == "ranking"
    assert reading(found[0][1].groups["random"].metrics) is None


def test_totals_are_means_and_pooled_margins_have_none() -> None:
    task = pope(12)
    (score, _), *_ = assess(task, task.items, [said(margins(0.8, images=12))], draws=50)
    each = [group[AUC].value for group in score.groups.values()]
    assert score.totals["mean of the 2"][AUC].value == pytest.approx(np.mean(each))
    assert math.isnan(score.totals[POOLED][AUC].value)


def test_without_all_margins_there_is_no_auc() -> None:
    task = pope()
    answers = right(task)
    known = dict.fromkeys(answers, 0.0)
    del known["random/3"]
    found = assess(task, task.items, [System([answers], known)], draws=20)
    assert AUC not in found[0][0].groups["random"]


def change(delta: float, low: float, high: float) -> Change:
    return Change(0.5, 0.5 + delta, delta, low, high, 0.01, 0)


UP, DOWN, STILL = change(0.1, 0.05, 0.2), change(-0.1, -0.2, -0.05), change(0.1, -0.1, 0.2)


@pytest.mark.parametrize(
    ("accuracy", "f1", "auc", "read"),
    [
        (UP, UP, STILL, "threshold"),
        (STILL, UP, STILL, "threshold"),
        (DOWN, STILL, STILL, "threshold"),
        (UP, STILL, UP, "ranking"),
        (DOWN, DOWN, DOWN, "ranking"),
        (UP, UP, DOWN, "opposite"),
        (STILL, STILL, UP, None),
    ],
)
def test_readings(accuracy: Change, f1: Change, auc: Change, read: str | None) -> None:
    assert reading({"accuracy": accuracy, "f1": f1, AUC: auc}) == read


def test_flips_need_no_margins() -> None:
    task = pope()
    one, two = right(task), flip(right(task), "random/3")
    found = assess(task, task.items, [System([one]), System([two])], draws=20)
    assert found[1][1].lost == ("random/3",)
