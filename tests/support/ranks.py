"""Threads that stand for the processes of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from regaze.evals.runs.distributed import World

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True)
class Rank(World):
    """One of several threads."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1), compare=False)

    def wait(self) -> None:
        """Go on once all threads have come this far."""
        self.barrier.wait(120)


def together(work: Callable[[World, M], T], models: Sequence[M]) -> list[T]:
    """The results of several threads, in the order of their ranks.

    Each has a model of its own, loaded before: transformers doesn't load in several threads.
    """
    size = len(models)
    barrier = threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        ranks = [Rank(rank, size, barrier) for rank in range(size)]
        jobs = [pool.submit(work, *each) for each in zip(ranks, models, strict=True)]
        return [job.result(240) for job in jobs]
