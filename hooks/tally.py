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
    """Whether a call is one to measure, of those counted from 1: 1, 2, 4, 8, ...

    The others are only counted, so that the proof costs next to nothing.
    """
    return number & (number - 1) == 0


class Tally(Generic[Key]):
    """Counters of one work, per place (a layer or a site); any number of threads may count.

    Sums stay on the device, so that counting never waits for it.

    Attributes:
        runs: Prompts or sampling steps in which it acted.
        calls: Attention calls that it edited, per place.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.calls: Counter[Key] = Counter()
        self._sums: dict[Key, Tensor] = {}
        self._lock = threading.Lock()

    def begin(self, runs: int = 1) -> None:
        """Count prompts or steps."""
        with self._lock:
            self.runs += runs

    def count(self, key: Key) -> int:
        """Count a call; return how many there were at this place."""
        with self._lock:
            self.calls[key] += 1
            return self.calls[key]

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
        sums = torch.stack([(change > 0).sum(), change.sum(), counted.sum()]).double()
        with self._lock:
            before = self._sums.get(key)
            self._sums[key] = sums if before is None else before.to(sums.device) + sums

    def measured(self, key: Key) -> tuple[float, float]:
        """Share of what was measured at a place that changed, and the mean change.

        Waits for the device.
        """
        changed, change, total = self._sums[key].tolist() if key in self._sums else (0, 0, 0)
        return changed / max(total, 1), change / max(total, 1)


@dataclass(eq=False)
class Entry(Generic[Work, Key]):
    """One work on a seat's stack, with its counters. Two entries are never equal."""

    work: Work
    tally: Tally[Key] = field(default_factory=Tally)
