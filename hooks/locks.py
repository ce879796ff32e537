"""A lock that an interrupt can't leave closed for good."""

from __future__ import annotations

import threading


class BriefLock:
    """A re-entrant lock around a few quick lines.

    An interrupt that comes while a thread gives a lock back leaves it closed, and all others would
    wait for good. What this one guards takes microseconds, so whoever has waited for ``patience``
    seconds takes the lock for abandoned and makes a new one.
    """

    def __init__(self, patience: float = 2.0) -> None:
        self._patience = patience
        self._lock = threading.RLock()
        self._mine = threading.local()

    def __enter__(self) -> None:
        lock = self._lock
        while not lock.acquire(timeout=self._patience):
            if self._lock is lock:
                self._lock = threading.RLock()
            lock = self._lock
        self._mine.held = [*getattr(self._mine, "held", ()), lock]

    def __exit__(self, *error: object) -> None:
        *self._mine.held, lock = self._mine.held
        lock.release()
