from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored import pope_run

from regaze.evals.runs.results import RunResult
from regaze.evals.scoring import kept, score_run, tallies
from regaze.evals.scoring.scores import TaskScores


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    return replace(pope_run(1), out=tmp_path)


@pytest.fixture
def bootstraps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A note for each bootstrap."""
    done: list[int] = []
    replicas = tallies.Tallies.replicas

    def counted(self: tallies.Tallies, draws: int, seed: int) -> object:
        done.append(draws)
        return replicas(self, draws, seed)

    monkeypatch.setattr(tallies.Tallies, "replicas", counted)
    return done


def scored(result: RunResult, seed: int = 0) -> TaskScores:
    return score_run.score_run(result, draws=50, seed=seed)


def test_the_same_answers_are_bootstrapped_once(result: RunResult, bootstraps: list[int]) -> None:
    first = scored(result)
    again = scored(result)
    assert len(bootstraps) == 1
    # By repr: undefined metrics are NaN, which differs from itself.
    assert repr(again) == repr(first)


def _with(result: RunResult, **changes: Any) -> RunResult:
    """Another record of the last condition's first item."""
    last = result.answers[-1]
    key, record = next(iter(last.records.items()))
    records = {**last.records, key: replace(record, **changes)}
    changed = replace(last, records=records, by_seed={0: records})
    return replace(result, answers=[*result.answers[:-1], changed])


def _another_answer(result: RunResult) -> RunResult:
    record = next(iter(result.answers[-1].records.values()))
    return _with(result, text="no" if record.text == "yes" else "yes")


def _another_margin(result: RunResult) -> RunResult:
    return _with(result, margin=100.0)


def _fewer_items(result: RunResult) -> RunResult:
    clusters = sorted({item.cluster for item in result.items})[1:]
    return replace(result, items=[item for item in result.items if item.cluster in clusters])


@pytest.mark.parametrize("other", [_another_answer, _another_margin, _fewer_items])
def test_what_differs_is_scored_anew(
    result: RunResult, bootstraps: list[int], other: Callable[[RunResult], RunResult]
) -> None:
    scored(result)
    changed = other(result)
    found = scored(changed)
    (result.out / kept.KEPT).unlink()
    assert repr(found) == repr(scored(changed))
    assert len(bootstraps) == 3


def test_another_seed_and_other_code_are_scored_anew(
    result: RunResult, bootstraps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(result)
    scored(result, seed=1)
    monkeypatch.setattr(kept, "_code", lambda: "later")
    scored(result)
    assert len(bootstraps) == 3


def test_scores_of_another_rule_change_the_digest(
    result: RunResult, bootstraps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(result)
    metrics = type(result.task).metrics
    monkeypatch.setattr(
        type(result.task),
        "metrics",
        lambda self, sums: {key: value / 2 for key, value in metrics(self, sums).items()},
    )
    scored(result)
    assert len(bootstraps) == 2


@pytest.mark.parametrize("text", ["", "{", '{"a": 3}', "[]", "\x00"])
def test_a_damaged_file_is_made_anew(result: RunResult, bootstraps: list[int], text: str) -> None:
    first = scored(result)
    (result.out / kept.KEPT).write_text(text)
    assert repr(scored(result)) == repr(first)
    scored(result)
    assert len(bootstraps) == 2


def test_few_scores_are_kept(result: RunResult, bootstraps: list[int]) -> None:
    for seed in range(6):
        scored(result, seed)
    scored(result, 5)
    assert len(bootstraps) == 6
    scored(result, 0)
    assert len(bootstraps) == 7


def test_nothing_is_kept_where_the_run_has_no_folder(result: RunResult) -> None:
    gone = replace(result, out=result.out / "gone")
    scored(gone)
    assert not gone.out.exists()


def test_a_folder_that_cannot_be_written_costs_nothing(
    result: RunResult, bootstraps: list[int]
) -> None:
    (result.out / kept.KEPT).mkdir()
    assert repr(scored(result)) == repr(scored(result))
    assert len(bootstraps) == 2
