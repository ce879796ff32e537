"""Runs that were finished or stopped, and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stored import answers_on_disk
from toy import ToyTask, run_toy

from regaze.evals.runs.store import ConfigMismatchError


def test_a_finished_run_is_not_asked_again(tmp_path: Path) -> None:
    run_toy(tmp_path, "vhr:alpha=4")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    task = ToyTask()
    result = run_toy(tmp_path, "vhr:alpha=4", task=task)
    assert task.loads == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert len(result.answers[1].records) == 30


def test_another_condition_joins_a_finished_run(tmp_path: Path) -> None:
    run_toy(tmp_path, "vhr:alpha=4")
    before = answers_on_disk(tmp_path)
    result = run_toy(tmp_path, "vhr:alpha=4", "pai:alpha=2")
    assert [a.label for a in result.answers] == ["none", "vhr:alpha=4", "pai:alpha=2"]
    assert {name: answers_on_disk(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 5}, "batch_size: 4 there, 5 now"),
        ({"max_new_tokens": 6}, "decoding.max_new_tokens: 5 there, 6 now"),
        ({"limit": 20}, "items: 8 there, 20 now"),
        ({"identity": {"name": "toy", "weights_sha256": "x"}}, r"\(other model\.weights\)"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run_toy(tmp_path, limit=8)
    before = answers_on_disk(tmp_path)
    with pytest.raises(ConfigMismatchError, match=named):
        run_toy(tmp_path, **{"limit": 8, **change})
    assert answers_on_disk(tmp_path) == before


def test_an_interrupt_leaves_a_directory_that_goes_on(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole")

    def interrupt(label: str, done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "cut", progress=interrupt)
    assert len(answers_on_disk(tmp_path / "cut")["none"]) == 9
    run_toy(tmp_path / "cut")
    assert answers_on_disk(tmp_path / "cut") == answers_on_disk(tmp_path / "whole")


def test_a_killed_session_is_kept_when_the_run_goes_on(tmp_path: Path) -> None:
    def stop(label: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, progress=stop)
    sessions = run_toy(tmp_path).answers[0].manifest["sessions"]
    assert [session["answered"] for session in sessions] == [3, 27]
    assert all(session["cost"]["items"] > 0 for session in sessions)
