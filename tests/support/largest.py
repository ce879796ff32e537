"""Watch how large tensors get, to prove that no map is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return result


@contextmanager
def largest() -> Iterator[_Largest]:
    """Gives the numbers that the largest tensor made inside holds, as ``.numbers``."""
    with _Largest() as watched:  # type: ignore[no-untyped-call]
        yield watched
