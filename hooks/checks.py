"""Checks of what users give: numbers, names, indices; their messages say what would be right."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_LONGEST = 80
_LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which methods compute."""


@dataclass(frozen=True)
class Domain:
    """The values that a check allows a field.

    Attributes:
        low: Smallest number; minus infinity where there is none.
        high: Largest number.
        choices: Names to choose among; empty for numbers.
    """

    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


_NOTED: ContextVar[dict[str, Domain] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[dict[str, Domain]]:
    """Note the domains of all fields that are checked inside, by field; the last check counts."""
    found: dict[str, Domain] = {}
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def _note(field: str, domain: Domain) -> None:
    noted = _NOTED.get()
    if noted is not None:
        noted[field] = domain


def shown(value: object) -> str:
    """A value as messages show it: on one line, and its beginning, where it is long."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}... ({len(text)} letters)"


def reason(error: Exception) -> str:
    """An error's message, less the number and the path that the system's own begin and end with."""
    return getattr(error, "strerror", None) or str(error)


def unknown(what: str, given: object, known: Iterable[str]) -> str:
    """The message for a name that isn't known: nearest matches first, else all of them."""
    known, text = sorted(known), str(given)
    folded = {name.lower(): name for name in known}
    # "VHR", or "vhr alpha=2": what comes behind the name isn't what is wrong with it.
    word = re.split(r"[^\w-]", text.lower(), maxsplit=1)[0]
    if (exact := folded.get(text.lower()) or folded.get(word)) is not None:
        near = [exact]
    else:
        near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {shown(given)}; {hint}"


def check_number(
    method: str,
    field: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    why: str = "",
) -> None:
    """Check that a field is a finite number in ``[low, high]``.

    Raises:
        ValueError: It isn't; the message says which field, the domain and the reason.
    """
    _note(field, Domain(low, high))
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # Hundreds of digits.
            number = math.inf
    if not (abs(number) <= _LARGEST and low <= number <= high):
        within = "" if low == -high == -math.inf else f" in [{low:g}, {high:g}]"
        domain = f"a finite number{within}" + (f" ({why})" if why else "")
        raise ValueError(f"{method}: {field} must be {domain}, got {shown(value)}")


def check_choice(method: str, field: str, value: str, choices: Iterable[str]) -> None:
    """Check that a field is one of the named choices.

    Raises:
        ValueError: It isn't; the message names the nearest one.
    """
    choices = tuple(choices)
    _note(field, Domain(choices=choices))
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{method}: " + unknown(field, str(value), choices))


def check_indices(method: str, field: str, values: object, size: int, of: str) -> None:
    """Check that a field is a list of different indices that exist, e.g. layers of a model.

    Raises:
        ValueError: It isn't a list, or one is repeated or out of range.
    """
    if not isinstance(values, tuple):
        raise ValueError(f"{method}: {field} must be a list such as [1,2,3], got {shown(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"{method}: {field} must hold whole numbers such as [1,2,3], not {shown(value)}"
            )
        if not 0 <= value < size:
            raise ValueError(
                f"{method}: {field} holds {shown(value)}, but {of} has {size} (0 to {size - 1})"
            )
    if len(set(values)) < len(values):
        raise ValueError(f"{method}: {field} holds an index twice: {list(values)}")


def check_flag(method: str, field: str, value: object) -> None:
    """Check that a field is true or false.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{method}: {field} must be true or false, got {shown(value)}")
