"""Folders of the models that are shipped."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


def shipped(kind: str, name: str, names: Sequence[str]) -> Path:
    """Folder of a shipped model.

    Args:
        kind: What it is, for the message.
        name: Which one.
        names: All of that kind.

    Raises:
        ValueError: None of them has that name; the message names the nearest.
    """
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown {kind} {name!r}: it must be one of {', '.join(names)}; nearest is {near!r}"
        )
    return Path(__file__).parent / "models" / name
