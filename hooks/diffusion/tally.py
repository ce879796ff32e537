"""What a work did, how often and how strongly, counted without waiting for the device."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from regaze.hooks.report import LayerReport


class Tally:
    """Counters of one work; sums stay on the device, and threads may count at once.

    Attributes:
        steps: Sampling steps in which it acted.
        note: How it ran, if that needs saying; may be made when it is asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.steps = 0
        self.note: str | Callable[[], str] = ""
        self._calls: Counter[str] = Counter()
        self._sums: dict[str, Tensor] = {}

    def stepped(self) -> None:
        """Count a step in which the work acted."""
        with self._lock:
            self.steps += 1

    def count(self, site: str) -> bool:
        """Count a call; whether it is one to measure (1, 2, 4, 8, ...)."""
        with self._lock:
            self._calls[site] += 1
            count = self._calls[site]
        return count & (count - 1) == 0

    def measure(self, site: str, change: Tensor) -> None:
        """Add to a site's sums how far each of some things moved."""
        moved = [(change > 0).sum(), change.sum(), torch.ones_like(change).sum()]
        sums = torch.stack([x.double() if x.device.type != "mps" else x.float() for x in moved])
        with self._lock:
            before = self._sums.get(site)
            self._sums[site] = sums if before is None else before.to(sums.device) + sums

    def layer(self, number: int, site: str) -> LayerReport:
        """What was counted at a site; waits for the device."""
        with self._lock:
            sums, calls = self._sums.get(site), self._calls[site]
        heads, effect, total = (0.0, 0.0, 1.0) if sums is None else sums.tolist()
        total = max(total, 1)
        return LayerReport(number, calls, heads / total, effect / total, site)
