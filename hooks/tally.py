"""Counting what a work did: how often, where, and how strongly."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

Work = TypeVar("Work")
Key = TypeVar("Key", bound=Hashable)


def due(number: int) -> bool:
    """Return whether to measure the call of this number, counted from 1: 1, 2, 4, 8, ...

    The others are only counted, so that the proof costs next to nothing.
    """
    return number & (number - 1) == 0


class _Counts(Generic[Key]):
    """The counts of one thread."""

    def __init__(self) -> None:
        self.runs = 0
        self.calls: Counter[Key] = Counter()
        self.sums: dict[Key, Tensor] = {}


class Tally(Generic[Key]):
    """Counters of one work, per place (a layer or a site); any number of threads may count.

    Each thread has counters of its own: a lock could stay locked if the thread is interrupted. Sums
    stay on the device, so that counting never waits for it.
    """

    def __init__(self) -> None:
        self._threads: dict[int, _Counts[Key]] = {}

    def _here(self) -> _Counts[Key]:
        thread = threading.get_ident()
        counts = self._threads.get(thread)  # Making one in vain would cost more than all the rest.
        return self._threads.setdefault(thread, _Counts()) if counts is None else counts

    def begin(self, runs: int = 1) -> None:
        """Count prompts or steps."""
        self._here().runs += runs

    def count(self, key: Key) -> int:
        """Count a call; return how many this thread counted at this place."""
        calls = self._here().calls
        calls[key] += 1
        return calls[key]

    @torch.no_grad()
    def add(self, key: Key, change: Tensor, counted: Tensor | None = None) -> None:
        """Add what was measured in one call.

        Args:
            key: The place.
            change: Size of each change, of any shape; 0 where nothing changed.
            counted: Bool, broadcastable to ``change``: which ones count; all by default.
        """
        counted = torch.ones_like(change) if counted is None else counted.expand_as(change)
        change = change.masked_fill(counted == 0, 0)
        new = torch.stack([(change > 0).sum(), change.sum(), counted.sum()]).double()
        sums = self._here().sums
        sums[key] = sums[key].to(new.device) + new if key in sums else new

    @property
    def runs(self) -> int:
        """Prompts or sampling steps in which the work acted."""
        return sum(counts.runs for counts in list(self._threads.values()))

    @property
    def calls(self) -> Counter[Key]:
        """Attention calls that it edited, per place."""
        return sum((counts.calls for counts in list(self._threads.values())), Counter[Key]())

    def measured(self, key: Key) -> tuple[float, float]:
        """Share of what was measured at a place that changed, and the mean change.

        Waits for the device.
        """
        found = [c.sums[key].tolist() for c in list(self._threads.values()) if key in c.sums]
        changed, change, total = map(sum, zip(*found, strict=True)) if found else (0, 0, 0)
        return changed / max(total, 1), change / max(total, 1)


@dataclass(eq=False)
class Entry(Generic[Work, Key]):
    """One work on a seat's stack, with its counters. Two entries are never equal."""

    work: Work
    tally: Tally[Key] = field(default_factory=Tally)
