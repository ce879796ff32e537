from __future__ import annotations

import pytest

from regaze.evals.benchmarks.rows import arrange, require
from regaze.evals.task import Item


def test_items_of_one_image_and_of_one_cluster_become_neighbours() -> None:
    items = [
        Item("1", "a", "?", cluster="x"),
        Item("2", "c", "?", cluster="y"),
        Item("3", "b", "?", cluster="x"),
        Item("4", "a", "?", cluster="x"),
        Item("5", None, "?", cluster="y"),
    ]
    assert [i.id for i in arrange((i.id, i) for i in items)] == ["1", "4", "3", "2", "5"]


def test_a_repeated_question_is_named_with_both_places() -> None:
    with pytest.raises(ValueError, match="b:7: question 1 is already at a:3"):
        arrange([("a:3", Item("1", "a", "?")), ("b:7", Item("1", "b", "?"))])


def test_a_row_of_something_else_is_told_by_what_it_has() -> None:
    require("f:1", {"a": 0, "b": ""}, ("a", "b"), "Toy")
    with pytest.raises(ValueError, match=r"^f:1: no Toy question, it lacks b, c \(it has a, b\)$"):
        require("f:1", {"a": 0, "b": None}, ("a", "b", "c"), "Toy")
    with pytest.raises(ValueError, match="it has nothing"):
        require("f:1", {}, ("a",), "Toy")
