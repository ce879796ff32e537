"""Batches of items, and smaller ones where they don't fit into memory.

Batches depend on the items and the batch size alone, not on how many processes share the work or
on what a killed run has left: padding and batch shape may move the last bits of a logit.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import torch

from regaze.evals.task import Item

BatchSize = int | Literal["auto"]
AUTO = 36
"""The size that ``auto`` starts with: two images of POPE with all their questions."""

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


def plan(items: Sequence[Item], batch_size: BatchSize) -> list[list[Item]]:
    """Cut items into batches.

    Questions about one image stay together, so that the image is read once; only more of them than
    fit into a batch are dealt out evenly. A batch holds images with equally many questions, and
    prompts of similar length, so that little is padded. The largest batches come first: what
    doesn't fit into memory shows at once.
    """
    size = AUTO if batch_size == "auto" else batch_size
    if size < 1:
        raise ValueError(f"the batch size must be at least 1, or 'auto', got {batch_size}")
    units = [unit for group in by_image(items) for unit in _deal(group, size)]
    # Stable, so that equal units stay in the order of the items.
    units.sort(key=lambda unit: (_kind(unit), -len(unit), -max(len(i.prompt) for i in unit)))
    batches: list[list[Item]] = []
    for before, unit in zip([None, *units], units, strict=False):
        alike = before and (_kind(before), len(before)) == (_kind(unit), len(unit))
        if alike and len(batches[-1]) + len(unit) <= size:
            batches[-1] += unit
        else:
            batches.append(list(unit))
    return batches


def by_image(items: Iterable[Item]) -> list[list[Item]]:
    """Items that show the same image, in order; one without an image is alone."""
    groups: dict[tuple[bool, str | None, str], list[Item]] = {}
    for item in items:
        alone = item.id if item.image is None else ""
        groups.setdefault((bool(item.choices), item.image, alone), []).append(item)
    return list(groups.values())


class AdaptiveBatches:
    """Runs batches; with ``auto``, halves a batch that runs out of memory and tries again.

    Attributes:
        size: Most items that are asked together; it falls when memory runs out and stays there.
    """

    def __init__(self, batch_size: BatchSize) -> None:
        self.auto = batch_size == "auto"
        self.size = AUTO if batch_size == "auto" else batch_size

    def ask(
        self,
        batch: Sequence[Item],
        answer: Callable[[Sequence[Item]], Mapping[str, _Answer]],
        give_up: Callable[[Item], _Answer],
    ) -> dict[str, _Answer]:
        """Answers of a batch by item id.

        Args:
            batch: Items.
            answer: Asks items together.
            give_up: The answer of an item that doesn't fit even by itself.

        Raises:
            torch.OutOfMemoryError: A batch doesn't fit and its size isn't ``auto``.
        """
        if self.auto and len(batch) > self.size:
            first, second = halves(batch)
            return self.ask(first, answer, give_up) | self.ask(second, answer, give_up)
        try:
            return dict(answer(batch))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not self.auto or not out_of_memory(error):
                raise
        # Out of the except block, so that what the traceback holds is free by now.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return {batch[0].id: give_up(batch[0])}
        self.size = len(batch) // 2
        _log.warning("out of memory with %d items at once: going on with %d", len(batch), self.size)
        return self.ask(batch, answer, give_up)


def halves(batch: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Two parts of about the same size; questions about one image stay together if they can."""
    groups = by_image(batch)
    if len(groups) == 1:
        return list(batch[: (len(batch) + 1) // 2]), list(batch[(len(batch) + 1) // 2 :])
    cut = (len(groups) + 1) // 2
    first, second = groups[:cut], groups[cut:]
    return [i for group in first for i in group], [i for group in second for i in group]


def out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory ran out; PyTorch has several ways to say so."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _deal(group: list[Item], size: int) -> list[list[Item]]:
    parts = -(-len(group) // size)
    edges = [len(group) * part // parts for part in range(parts + 1)]
    return [group[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def _kind(unit: Sequence[Item]) -> tuple[bool, bool]:
    return bool(unit[0].choices), unit[0].image is None
