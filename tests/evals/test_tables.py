from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from toy import ToyTask

from regaze.evals import tables
from regaze.evals.records import Record
from regaze.evals.results import Answers, RunResult
from regaze.evals.scores import TaskScores, score_run
from regaze.evals.statistics import Change


def change(delta: float, low: float, high: float) -> Change:
    return Change(0.5, 0.5 + delta, delta, low, high, 0.01, 0)


def text(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def scores(truncated: bool = False) -> TaskScores:
    task = ToyTask(images=3)
    layers = [{"layer": layer, "effect": 0.25 * layer} for layer in (0, 1)]
    one = {"label": "vhr:alpha=4", "fired": True, "exempt": False, "effect": 0.125}
    firing = {"fired": True, "interventions": [{**one, "layers": layers, "prompts": 18}]}
    return score_run(
        RunResult(
            task,
            task.items,
            [
                Answers(
                    label,
                    {
                        item.id: Record(
                            item.id, item.cluster, answer, finish="length" if truncated else "eos"
                        )
                        for item in task.items
                    },
                    {"config_sha256": "x", "sessions": [{"firing": fired}]},
                )
                for label, answer, fired in [("none", "no", None), ("vhr:alpha=4", "star", firing)]
            ],
            Path("runs/x"),
        ),
        title="Toy questions",
        draws=200,
    )


@pytest.mark.parametrize(
    ("metric", "value", "signed", "shown"),
    [
        ("accuracy", 0.8451, False, "84.5"),
        ("accuracy", -0.0123, True, "−1.2"),
        ("accuracy", 0.0123, True, "+1.2"),
        ("accuracy", -0.0001, True, "0.0"),
        ("words", 12.34, False, "12.3"),
        ("f1", math.nan, False, "–"),
    ],
)
def test_numbers_are_shown_in_percent(metric: str, value: float, signed: bool, shown: str) -> None:
    assert tables.number(metric, value, signed=signed) == shown


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0002, "<.001"), (0.0123, ".012"), (0.25, ".25"), (1.0, "1.00"), (math.nan, "–")],
)
def test_p_values_have_the_digits_that_matter(p: float, shown: str) -> None:
    assert tables.p_value(p) == shown


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
    assert tables.verdict(change(*interval), direction) == verdict


def test_the_table_shows_values_changes_flips_and_firing_within_80_columns() -> None:
    shown = text(tables.render(scores()))
    assert max(map(len, shown.splitlines())) <= 80
    for part in (
        "Toy questions  toy/toy/plain, 18 items, 3 images",
        "easy",
        "mean of the 2",
        "100.0 +100.0▲",
        "[+100.0, +100.0]",
        "−0 +9",
        "fired in 1 of 2 layers, mean effect 0.125",
    ):
        assert part in shown


def test_the_summary_has_a_column_per_condition() -> None:
    shown = text(tables.summary([scores(), scores()]))
    assert shown.count("vhr:alpha=4") == 2
    assert "100.0 +100.0▲" in shown


def test_cut_answers_are_pointed_out() -> None:
    assert tables.notes(scores()) == []
    assert "18 of 18 answers were cut" in tables.notes(scores(truncated=True))[0]
