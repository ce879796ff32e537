from __future__ import annotations

import json
import math

import pytest
from popes import flip, pope, right

from regaze.evals.scoring.compare import compare, score, to_json


def test_identical_systems_differ_by_exactly_nothing() -> None:
    task = pope()
    answers = flip(right(task), "random/3", "popular/4")
    found = compare(task, task.items, answers, answers, draws=500)
    for group in found.sections.values():
        for metric in group.metrics.values():
            assert (metric.delta, metric.low, metric.high, metric.p) == (0, 0, 0, 1)
        assert group.lost == group.gained == ()


def test_flips_are_listed_both_ways_and_by_group() -> None:
    task = pope()
    baseline = flip(right(task), "random/3", "random/5")
    other = flip(right(task), "random/5", "popular/0", "popular/1")
    found = compare(task, task.items, baseline, other, draws=100)
    assert found.groups["random"].gained == ("random/3",)
    assert found.groups["random"].lost == ()
    assert set(found.groups["popular"].lost) == {"popular/0", "popular/1"}
    assert set(found.lost) == {"popular/0", "popular/1"}
    assert found.gained == ("random/3",)
    assert found.totals["mean of the 2"].mcnemar.p == pytest.approx(1.0)


def test_values_are_those_of_the_metrics_and_the_total_is_their_mean() -> None:
    task = pope()
    baseline = flip(right(task), "random/0", "random/2")
    found = compare(task, task.items, baseline, right(task), draws=100)
    accuracy = found.groups["random"].metrics["accuracy"]
    assert (accuracy.baseline, accuracy.other) == (14 / 16, 1.0)
    assert accuracy.delta == 2 / 16
    assert found.totals["mean of the 2"].metrics["accuracy"].baseline == (14 / 16 + 1.0) / 2
    assert found.groups["random"].metrics["yes_ratio"].delta == 2 / 16


def test_groups_and_items_are_counted() -> None:
    task = pope(images=5)
    found = compare(task, task.items, right(task), right(task), draws=10)
    assert [(g.items, g.clusters) for g in found.groups.values()] == [(10, 5), (10, 5)]
    assert (found.totals["mean of the 2"].items, found.totals["mean of the 2"].clusters) == (20, 5)
    assert list(found.groups) == ["random", "popular"]


def test_an_image_is_drawn_with_its_questions_in_all_groups() -> None:
    """If both subsets flip on the same images, their mean must vary as much as each."""
    task = pope(images=12)
    wrong = [f"{subset}/{2 * image}" for subset in ("random", "popular") for image in range(4)]
    found = compare(task, task.items, flip(right(task), *wrong), right(task), draws=800)
    single = found.groups["random"].metrics["accuracy"]
    mean = found.totals["mean of the 2"].metrics["accuracy"]
    assert (mean.low, mean.high) == (single.low, single.high)


def test_pairing_makes_the_interval_of_a_constant_gain_a_point() -> None:
    task = pope(images=10, subsets=("random",))
    yes_wrong = [f"random/{2 * image}" for image in range(10)]
    found = compare(task, task.items, flip(right(task), *yes_wrong), right(task), draws=200)
    accuracy = found.groups["random"].metrics["accuracy"]
    assert (accuracy.delta, accuracy.low, accuracy.high) == (0.5, 0.5, 0.5)
    assert accuracy.p == pytest.approx(2 / 201)


def test_an_undefined_metric_is_dropped_and_becomes_null() -> None:
    task = pope(images=6)
    never = {item.id: "no" for item in task.items}
    found = compare(task, task.items, never, right(task), draws=50)
    precision = found.totals["mean of the 2"].metrics["precision"]
    assert math.isnan(precision.baseline)
    assert precision.dropped == 50
    stored = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert stored["totals"]["mean of the 2"]["metrics"]["precision"]["baseline"] is None
    assert stored["totals"]["mean of the 2"]["metrics"]["accuracy"]["delta"] == 0.5
    assert stored["totals"]["mean of the 2"]["gained"] == list(found.totals["mean of the 2"].gained)


def test_the_result_follows_its_seed() -> None:
    task = pope()
    answers = flip(right(task), "random/3", "random/4", "popular/9")
    first = compare(task, task.items, right(task), answers, draws=200, seed=1)
    assert first == compare(task, task.items, right(task), answers, draws=200, seed=1)
    assert first != compare(task, task.items, right(task), answers, draws=200, seed=2)


def test_a_missing_answer_is_refused_and_named() -> None:
    task = pope()
    answers = right(task)
    del answers["popular/7"]
    with pytest.raises(ValueError, match=r"1 of 32 items have no answer, e\.g\. 'popular/7'"):
        compare(task, task.items, right(task), answers)


def test_only_the_given_items_are_compared() -> None:
    task = pope()
    items = [item for item in task.items if item.group == "random"]
    found = compare(task, items, right(task), flip(right(task), "popular/0"), draws=20)
    assert list(found.groups) == ["random"]
    assert found.lost == ()


@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_are_refused(images: int) -> None:
    task = pope()
    items = [item for item in task.items if int(item.cluster.split(".")[0]) < images]
    with pytest.raises(ValueError, match="at least two clusters"):
        compare(task, items, right(task), right(task))


def test_a_score_has_the_same_values_and_an_interval_around_them() -> None:
    task = pope()
    answers = flip(right(task), "random/0", "random/2", "popular/3")
    found = score(task, task.items, answers, draws=500)
    accuracy = found.groups["random"]["accuracy"]
    assert accuracy.value == 14 / 16
    assert accuracy.low < accuracy.value < accuracy.high <= 1
    assert found.totals["mean of the 2"]["accuracy"].value == (14 / 16 + 15 / 16) / 2
    assert found.totals["mean of the 2"]["accuracy"].dropped == 0


def test_json_values_survive_unchanged() -> None:
    assert to_json({1: (1.5, "a", None, True), "b": float("inf")}) == {
        "1": [1.5, "a", None, True],
        "b": None,
    }
