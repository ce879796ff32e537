"""Compiled code run uncompiled for a while: torch has one switch for all threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from regaze.hooks.locks import BriefLock


class _Eager:
    def __init__(self) -> None:
        self._lock = BriefLock()
        self._wanted: set[int] = set()
        self._stance: Any = None

    @contextmanager
    def __call__(self, owner: object) -> Iterator[None]:
        """Run compiled code uncompiled inside.

        Args:
            owner: The owner, for which `leave` ends it, should an interrupt come in the way.
        """
        try:
            with self._lock:
                if not self._wanted:
                    self._stance = torch.compiler.set_stance("force_eager")
                self._wanted.add(id(owner))
            yield
        finally:
            self.leave(owner)

    def leave(self, owner: object) -> None:
        """Run compiled code as compiled again, unless others want it uncompiled."""
        if not self._wanted:
            return
        with self._lock:
            self._wanted.discard(id(owner))
            if not self._wanted and self._stance is not None:
                stance, self._stance = self._stance, None
                stance.__exit__(None, None, None)


eagerly = _Eager()
"""``with eagerly(owner)``: compiled code runs uncompiled."""
