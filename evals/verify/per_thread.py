"""Parts of a pipeline that each thread gets a copy of, because they can't be shared as they are.

A diffusers scheduler counts its steps on itself, and a tokenizer keeps its padding there: plain
pipelines mix threads up, too. With copies of these, what two threads share is the model.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class PerThread:
    """Stands for an object; every thread works on a copy of its own."""

    def __init__(self, original: Any) -> None:
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_local", threading.local())

    @property
    def _mine(self) -> Any:
        local = object.__getattribute__(self, "_local")
        if not hasattr(local, "copy"):
            local.copy = copy.deepcopy(object.__getattribute__(self, "_original"))
        return local.copy

    def __getattribute__(self, name: str) -> Any:
        mine = object.__getattribute__(self, "_mine")
        if name == "__class__":
            return type(mine)
        return vars(mine) if name == "__dict__" else getattr(mine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_mine"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_mine"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call this thread's copy."""
        return object.__getattribute__(self, "_mine")(*args, **kwargs)

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_mine"))


@contextmanager
def copied(pipeline: Any) -> Iterator[None]:
    """Give each thread its own scheduler and tokenizers while the block runs."""
    own = vars(pipeline)
    before = {
        name: part
        for name, part in pipeline.components.items()
        if part is not None and name.startswith(("scheduler", "tokenizer"))
    }
    own |= {name: PerThread(part) for name, part in before.items()}
    try:
        yield
    finally:
        own |= before
