"""Checks of what a world is asked for by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like another, however little it is."""
    return get_close_matches(name, known, n=1, cutoff=0.0)[0]


def check_known(what: str, name: str, known: Sequence[str]) -> None:
    """Check that a name is known.

    Args:
        what: The kind of thing that it names, for the message.
        name: The name.
        known: All that are known.

    Raises:
        ValueError: It isn't; the message names all of them and the nearest.
    """
    if name not in known:
        raise ValueError(
            f"unknown {what} {name!r}: it must be one of {', '.join(known)}; nearest is "
            f"{nearest(name, known)!r}"
        )


def check_scene(split: str, index: int, splits: Sequence[str]) -> None:
    """Check that a world has a scene.

    Raises:
        ValueError: Unknown split or negative index.
    """
    check_known("split", split, splits)
    if index < 0:
        raise ValueError(f"scene index {index} is negative: scenes are numbered from 0")
