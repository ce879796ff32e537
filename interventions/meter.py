"""Measure sparse attention: the share of a map that it computes, and its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from regaze.hooks.tally import Tally


class Meter:
    """Totals of sparse calls."""

    def __init__(self) -> None:
        self._density: Tally[str] = Tally()
        self._time: Tally[str] = Tally()

    def see(self, density: float) -> None:
        """Count a call of this density."""
        self._density.add("", torch.tensor([density], dtype=torch.float32, device="cpu"))

    def clock(
        self, device: torch.device, sparse: Callable[[], Any], dense: Callable[[], Any]
    ) -> None:
        """Time both, the first time in each thread."""
        if self._time.count("") == 1:
            self._time.add(
                "",
                torch.tensor(
                    [_seconds(device, sparse) / _seconds(device, dense)],
                    dtype=torch.float32,
                    device="cpu",
                ),
            )

    def __str__(self) -> str:
        if not self._time.calls:
            return ""
        density, ratio = self._density.measured("")[1], self._time.measured("")[1]
        return f"density {density:.3f}, {ratio:.2f} times dense attention's time in the first call"


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    work()
    return now() - start
