from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scored import pope_scores, toy_scores

from regaze.evals.reports import wording
from regaze.evals.scoring.statistics import Change, Estimate, Seeds
from regaze.evals.scoring.thresholds import AUC, BEST

SCORES = replace(toy_scores(), absolute=("words", "score"))
POPE = pope_scores()


def change(delta: float, low: float, high: float) -> Change:
    return Change(0.5, 0.5 + delta, delta, low, high, 0.01, 0)


@pytest.mark.parametrize(
    ("metric", "value", "signed", "shown"),
    [
        ("accuracy", 0.8451, False, "84.5"),
        ("accuracy", -0.0123, True, "−1.2"),
        ("accuracy", 0.0123, True, "+1.2"),
        ("accuracy", -0.0001, True, "0.0"),
        ("words", 12.34, False, "12.3"),
        ("score", 1234.56, False, "1234.6"),
        ("f1", math.nan, False, "–"),
    ],
)
def test_numbers_are_shown_in_percent(metric: str, value: float, signed: bool, shown: str) -> None:
    assert wording.number(SCORES, metric, value, signed=signed) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0002, "<.001"), (0.0123, ".012"), (0.25, ".25"), (1.0, "1.00"), (math.nan, "–")],
)
def test_p_values_have_the_digits_that_matter(p: float, shown: str) -> None:
    assert wording.p_value(p) == shown


@pytest.mark.parametrize(
    ("interval", "direction", "verdict"),
    [
        ((0.05, 0.01, 0.09), 1, "better"),
        ((0.05, 0.01, 0.09), -1, "worse"),
        ((-0.05, -0.09, -0.01), -1, "better"),
        ((0.05, 0.01, 0.09), 0, "moved"),
        ((0.05, -0.01, 0.09), 1, "open"),
        ((0.0, 0.0, 0.0), 1, "open"),
        ((math.nan, math.nan, math.nan), 1, "open"),
    ],
)
def test_only_an_interval_that_excludes_zero_is_a_finding(
    interval: tuple[float, float, float], direction: int, verdict: str
) -> None:
    assert wording.verdict(change(*interval), direction) == verdict


def test_thresholds_have_a_table_of_their_own() -> None:
    assert wording.shown_metrics(POPE) == ["accuracy", "f1", "yes_ratio"]
    assert wording.threshold_metrics(POPE) == ["accuracy", BEST, AUC]
    assert wording.threshold_metrics(SCORES) == []


def test_a_moved_threshold_is_said_in_words_with_its_numbers() -> None:
    rows = {row.condition.label: row for row in POPE.sections[-1].rows}
    line = wording.threshold_line(POPE, rows["vhr"])
    assert line is not None
    assert line.startswith("vhr: accuracy +")
    assert "may be no more than a moved yes/no threshold (AUC 0.0 [0.0, 0.0])" in line
    better = wording.threshold_line(POPE, rows["pai"])
    assert better is not None
    assert "AUC moved along" in better
    for label in ("none", "none@blank", "vhr:heads=random"):
        assert wording.threshold_line(POPE, rows[label]) is None


def test_a_length_that_nothing_moved_is_left_out_and_a_score_never_is() -> None:
    still = replace(POPE, directions={**POPE.directions, "words": 1})
    assert wording.shown_metrics(still) == ["accuracy", "f1", "yes_ratio", "words"]


def test_missing_margins_are_told() -> None:
    without = {k: v for k, v in POPE.directions.items() if k not in (AUC, BEST)}
    (line,) = wording.notes(replace(POPE, directions=without))
    assert "no yes/no margins are stored" in line
    assert wording.notes(POPE) == []


def test_the_spread_between_seeds() -> None:
    seeds = Seeds((0.81, 0.82, 0.815), 0.005, 0.81, 0.82)
    assert wording.seeds(POPE, "f1", Estimate(0.815, 0.8, 0.83, 0, seeds)) == "sd 0.5, 81.0 to 82.0"
    assert wording.seeds(POPE, "f1", Estimate(0.815, 0.8, 0.83, 0)) == ""


def test_cut_answers_are_pointed_out() -> None:
    assert wording.notes(toy_scores()) == []
    assert "18 of 18 answers were cut" in wording.notes(toy_scores(truncated=True))[0]


def test_an_interval_with_many_undefined_replicates_is_doubtful() -> None:
    first = POPE.conditions[0]
    assert first.score is not None
    last = list(first.score.totals)[-1]
    metrics = dict(first.score.totals[last])
    metrics["f1"] = replace(metrics["f1"], dropped=20)
    doubtful = replace(first.score, totals={**first.score.totals, last: metrics})
    (line,) = wording.notes(replace(POPE, conditions=(replace(first, score=doubtful),)))
    assert "none: F1 is undefined in 20 of 400 bootstrap replicates" in line
