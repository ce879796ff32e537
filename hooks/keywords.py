"""Forward hooks that see keyword arguments, in a model that other threads run meanwhile."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def sees_keywords(hook: Callable[P, R]) -> Callable[P, R]:
    """Leave a hook out where torch calls it without its keyword arguments.

    torch keeps ``with_kwargs`` apart from the hook it belongs to, and reads it when the hook's turn
    comes. So a pass that runs in another thread while a hook is registered or removed may call it
    with too few arguments; to that pass, the hook isn't there.
    """
    wanted = len(inspect.signature(hook).parameters)

    @functools.wraps(hook)
    def called(*args: Any) -> Any:
        return hook(*args) if len(args) == wanted else None  # type: ignore[call-arg, arg-type]

    return called  # type: ignore[return-value]
