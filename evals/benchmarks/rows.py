"""How rows of a benchmark's files become items, and what is said of rows of something else."""

from __future__ import annotations

from collections.abc import Iterable

from regaze.evals.benchmarks.data import Row
from regaze.evals.benchmarks.kinds import looks_like
from regaze.evals.task import Item


def require(place: str, row: Row, fields: Iterable[str], what: str) -> None:
    """Refuse a row of something else.

    Args:
        place: File and line, for the message.
        row: What was read.
        fields: Names that must have a value.
        what: The benchmark, for the message.

    Raises:
        ValueError: A field is missing or empty; the message names what there is instead.
    """
    if missing := [name for name in fields if row.get(name) is None]:
        other = looks_like(row)
        raise ValueError(
            f"{place}: no {what} question, it lacks {', '.join(missing)} "
            f"(it has {', '.join(map(str, row)) or 'nothing'})"
            + (f"; it looks like one of {other}" if other else "")
        )


def arrange(items: Iterable[tuple[str, Item]]) -> tuple[Item, ...]:
    """Put items of one cluster, and in it those of one image, next to each other.

    Args:
        items: Each with the place it was read from. Otherwise their order is kept.

    Raises:
        ValueError: Two have the same id; the message names both places.
    """
    seen: dict[str, str] = {}
    clusters: dict[str, dict[str | None, list[Item]]] = {}
    for place, item in items:
        if item.id in seen:
            raise ValueError(f"{place}: question {item.id} is already at {seen[item.id]}")
        seen[item.id] = place
        clusters.setdefault(item.cluster, {}).setdefault(item.image, []).append(item)
    return tuple(
        item for images in clusters.values() for group in images.values() for item in group
    )
