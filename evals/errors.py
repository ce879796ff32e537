"""A library's error message, in short."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of its message; its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
