"""Values that one work of a method leaves for another: read in the picture, used in the text."""

from __future__ import annotations

import threading
from types import FrameType
from typing import Generic, TypeVar

from torch import nn

from regaze.hooks.callers import frames, runs

T = TypeVar("T")


class _Here(threading.local):
    """The value left in one thread, and the call in which it was left."""

    left: tuple[FrameType | None, object] | None = None


class Handover(Generic[T]):
    """A place that two works of one spec share: `bind` gives it to both.

    Works are copied for every pass, and many calls of one model may be under way, so an attribute
    of either would be lost or another call's. What is put here belongs to the call of the model,
    or of its ``generate``, that is running in this thread: it can be taken once, in the same call.
    """

    def __init__(self) -> None:
        self._here = _Here()

    def put(self, value: T) -> None:
        """Leave a value for this call; it replaces what was left before."""
        self._here.left = _call(), value

    def waits(self) -> bool:
        """Return whether something was left in this call that isn't taken yet."""
        return self._here.left is not None and runs(self._here.left[0])

    def take(self) -> T:
        """Take what was left in this call.

        Raises:
            RuntimeError: Nothing was, or by a call that is over.
        """
        waits, left, self._here.left = self.waits(), self._here.left, None
        if left is None or not waits:
            raise RuntimeError(
                "this method reads the picture in the vision tower, which didn't run in this call "
                "(the picture's features were computed beforehand, or by another call): give the "
                "model its pictures"
            )
        return left[1]  # type: ignore[return-value]


def _call() -> FrameType | None:
    """The outermost running method of a module."""
    found = None
    for frame in frames():
        if isinstance(frame.f_locals.get("self"), nn.Module):
            found = frame
    return found
