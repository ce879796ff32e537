from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from regaze.evals.asking.batching import AUTO, AdaptiveBatches, halves, out_of_memory, plan
from regaze.evals.task import Item


def asked(**images: int) -> list[Item]:
    return [Item(f"{key}{n}", key, "?") for key, count in images.items() for n in range(count)]


def ids(batches: Sequence[Sequence[Item]]) -> list[list[str]]:
    return [[item.id for item in batch] for batch in batches]


def test_questions_about_one_image_stay_together() -> None:
    items = [*asked(a=2, b=2), Item("a9", "a", "?")]
    assert ids(plan(items, 4)) == [["a0", "a1", "a9"], ["b0", "b1"]]


def test_images_with_as_many_questions_fill_a_batch() -> None:
    assert ids(plan(asked(a=1, b=2, c=2, d=2), 4)) == [
        ["b0", "b1", "c0", "c1"],
        ["d0", "d1"],
        ["a0"],
    ]


def test_more_questions_than_fit_are_dealt_out_evenly() -> None:
    assert [len(batch) for batch in plan(asked(a=18), 8)] == [6, 6, 6]


def test_long_prompts_come_first_and_equal_ones_in_order() -> None:
    items = [Item(str(n), str(n), "w" * length) for n, length in enumerate((1, 5, 1, 5, 9))]
    assert ids(plan(items, 2)) == [["4", "1"], ["3", "0"], ["2"]]


def test_what_is_asked_in_different_ways_is_never_in_one_batch() -> None:
    items = [
        Item("free", "a", "?"),
        Item("choice", "a", "?", choices=("x", "y")),
        Item("blind", None, "?", cluster="c"),
        Item("blind too", None, "?", cluster="c"),
    ]
    assert ids(plan(items, 8)) == [["free"], ["blind", "blind too"], ["choice"]]


def test_nothing_is_lost_or_doubled() -> None:
    items = asked(a=7, b=1, c=18, d=4, e=4)
    for size in (1, 2, 5, 8, 100, "auto"):
        batches = plan(items, size)  # type: ignore[arg-type]
        found = [item.id for batch in batches for item in batch]
        assert sorted(found) == sorted(item.id for item in items)
        assert max(map(len, batches)) <= (AUTO if size == "auto" else size)  # type: ignore[operator]


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, or 'auto', got 0"):
        plan(asked(a=1), 0)


def test_halves_keep_images_whole_where_they_can() -> None:
    assert ids(halves(asked(a=2, b=2, c=2))) == [["a0", "a1", "b0", "b1"], ["c0", "c1"]]
    assert ids(halves(asked(a=3))) == [["a0", "a1"], ["a2"]]


class Machine:
    """Answers as many items at once as fit."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[Item]) -> dict[str, str]:
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise self.error
        return {item.id: "yes" for item in items}


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT)
def test_auto_goes_on_with_smaller_batches_and_drops_nothing(error: Exception) -> None:
    halving, machine = AdaptiveBatches("auto"), Machine(5, error)
    batches = plan(asked(a=18, b=18, c=18), "auto")
    answers: dict[str, str] = {}
    for batch in batches:
        answers |= halving.ask(batch, machine, lambda item: "gave up")
    assert len(answers) == 54
    assert set(answers.values()) == {"yes"}
    assert halving.size <= 5
    assert all(size <= 5 for size in machine.sizes[-4:]), "it remembers what fits"


def test_an_item_that_never_fits_gets_a_reason() -> None:
    found = AdaptiveBatches("auto").ask(
        asked(a=2), Machine(0, OUT[0]), lambda item: f"no {item.id}"
    )
    assert found == {"a0": "no a0", "a1": "no a1"}


def test_a_fixed_batch_size_is_never_changed() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        AdaptiveBatches(8).ask(asked(a=2), Machine(1, OUT[0]), lambda item: "gave up")


def test_other_errors_are_no_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        AdaptiveBatches("auto").ask(asked(a=2), Machine(0, RuntimeError("shapes")), lambda item: "")
    assert not out_of_memory(RuntimeError("shapes"))
