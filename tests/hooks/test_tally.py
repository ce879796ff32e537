"""Counters that any number of threads may use, and that an interrupt can't lock."""

from __future__ import annotations

import threading

import pytest
import torch

from regaze.hooks.tally import Entry, Tally, due


def test_counts_and_changes_are_summed_per_place() -> None:
    tally: Tally[str] = Tally()
    tally.begin(2)
    tally.begin()
    for key in ("a", "a", "b"):
        tally.count(key)
    tally.add("a", torch.tensor([0.0, 1.0]))
    tally.add("a", torch.tensor([[0.5], [9.0]]), torch.tensor([[True], [False]]))
    assert tally.runs == 3
    assert tally.calls == {"a": 2, "b": 1}
    assert tally.measured("a") == (2 / 3, 0.5)
    assert tally.measured("b") == (0, 0)


def test_threads_lose_no_count() -> None:
    tally: Tally[int] = Tally()

    def work() -> None:
        for number in range(200):
            tally.count(number % 2)
            tally.begin()
            tally.add(0, torch.ones(1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.runs == 800
    assert tally.calls == {0: 400, 1: 400}
    assert tally.measured(0) == (1, 1)


def test_what_is_not_a_number_is_not_counted() -> None:
    tally: Tally[int] = Tally()
    tally.add(0, torch.tensor([torch.nan, 1.0]), torch.tensor([False, True]))
    assert tally.measured(0) == (1, 1)


def test_calls_are_measured_ever_more_seldom() -> None:
    assert [number for number in range(1, 20) if due(number)] == [1, 2, 4, 8, 16]


def test_two_entries_of_one_work_are_not_equal() -> None:
    work = object()
    one, other = Entry[object, int](work), Entry[object, int](work)
    assert one != other
    assert len({one, other}) == 2
    with pytest.raises(ValueError, match="not in list"):
        [one].index(other)
