"""Processes that share a directory wait for each other where they must."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ranks import together

from regaze.evals.runs import meeting
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import quiet

LATE = 0.15


def test_all_begin_when_the_first_has_prepared(tmp_path: Path) -> None:
    def work(world: World, _: None) -> bool:
        def prepare() -> None:
            time.sleep(LATE)
            (tmp_path / "prepared").touch()

        with meeting.alone(tmp_path, {}, prepare, world):
            return (tmp_path / "prepared").exists()

    assert together(work, [None, None, None]) == [True] * 3


@pytest.mark.parametrize("late", [0, 1])
def test_all_read_the_same_while_nobody_writes(tmp_path: Path, late: int) -> None:
    def work(world: World, _: None) -> set[str]:
        def read() -> set[str]:
            if world.rank == late:
                time.sleep(LATE)
            return {path.name for path in tmp_path.iterdir()}

        if world.rank != late:
            time.sleep(LATE)
        (tmp_path / f"before {world.rank}").touch()
        found = meeting.read_together(world, read)
        (tmp_path / f"after {world.rank}").touch()
        return found

    assert together(work, [None, None]) == [{"before 0", "before 1"}] * 2


def test_the_first_gathers_when_all_have_written_and_before_any_goes_on(tmp_path: Path) -> None:
    gathered = []

    def work(world: World, _: None) -> set[str]:
        def gather() -> None:
            gathered.append({path.name for path in tmp_path.iterdir()})
            time.sleep(LATE)
            (tmp_path / "gathered").touch()

        time.sleep(LATE * world.rank)
        (tmp_path / f"{world.rank}").touch()
        meeting.by_first(world, gather)
        return {path.name for path in tmp_path.iterdir()}

    assert together(work, [None, None]) == [{"0", "1", "gathered"}] * 2
    assert gathered == [{"0", "1"}]


def test_units_are_shared_out_in_turn_and_counted_by_their_items() -> None:
    told: list[tuple[str, int, int]] = []
    left = {"a": 2, "b": 3, "c": 5, "d": 7, "e": 11}
    mine, finished = meeting.share_out("x", left, 100, World(1, 2), lambda *it: told.append(it))
    assert mine == ["b", "d"]
    for unit in mine:
        finished(unit)
    assert told == [("x", 100, 110), ("x", 103, 110), ("x", 110, 110)]
    parts = [meeting.share_out("x", left, 0, World(rank, 3), quiet)[0] for rank in range(3)]
    assert sorted(unit for part in parts for unit in part) == list(left)
