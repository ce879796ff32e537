from __future__ import annotations

from pathlib import Path

import pytest
from toy import ToyTask

from regaze.evals.runs import results
from regaze.evals.runs.results import take
from regaze.evals.task import Item


def items(**groups: int) -> list[Item]:
    return [Item(f"{g}/{i}", f"image {i}", "?", g) for g, n in groups.items() for i in range(n)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, ["a/0"]),
        (3, ["a/0", "a/1", "b/0"]),
        (6, ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1"]),
        (99, ["a/0", "a/1", "a/2", "a/3", "a/4", "b/0", "b/1"]),
    ],
)
def test_a_limit_takes_the_first_items_of_each_group_in_order(
    limit: int, expected: list[str]
) -> None:
    assert [item.id for item in take(items(a=5, b=2), limit)] == expected


def test_no_items_and_a_limit_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to ask"):
        take([], None)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        take(items(a=1), 0)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a run directory: it has no run\.json"):
        results.load(ToyTask(), tmp_path)
