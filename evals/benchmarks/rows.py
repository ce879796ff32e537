"""Items from rows of a benchmark's files, and errors about rows of something else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from regaze.evals.benchmarks.data import Row
from regaze.evals.benchmarks.kinds import looks_like
from regaze.evals.task import Item

_TEXTS = frozenset({"text", "question", "Question", "query", "image", "caption", "image_src"})
"""Fields that are text wherever they occur."""
_NAMES = frozenset(
    {"id", "question_id", "image_id", "Index", "category", "subcategory", "set_id", "figure_id"}
)
"""Fields that name something: text or a whole number."""


def require(place: str, row: Row, fields: Iterable[str], what: str) -> None:
    """Refuse a row of something else.

    Args:
        place: File and line, for the message.
        row: The row as it was read.
        fields: Names that must have a value; what is asked must be text, and what names something
            text or a whole number.
        what: The benchmark, for the message.

    Raises:
        ValueError: A field is missing or empty, and the message names what there is instead; or
            it is of the wrong kind.
    """
    wanted = tuple(fields)
    if missing := [name for name in wanted if row.get(name) is None]:
        other = looks_like(row)
        raise ValueError(
            f"{place}: no {what} question, it lacks {', '.join(missing)} "
            f"(it has {', '.join(map(str, row)) or 'nothing'})"
            + (f"; it looks like one of {other}" if other else "")
            + _ADVICE.get((what, other or ""), "")
        )
    for name in wanted:
        value: Any = row[name]
        if name in _TEXTS and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{place}: {name} must be text, not {value!r:.60}")
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in _NAMES and not (number or (isinstance(value, str) and value.strip())):
            raise ValueError(f"{place}: {name} must be text or a whole number, not {value!r:.60}")


_ADVICE = {
    ("POPE", "CHAIR (COCO)"): ", of which questions can be built: regaze build pope --annotations "
    "FILE --images DIR --out QUESTIONS.json",
    ("POPE", "OPOPE"): ", of which questions can be built: regaze build pope --annotations FILE "
    "--images DIR --out QUESTIONS.json",
}


def texts(place: str, row: Row, field: str, what: str = "list of texts") -> list[str]:
    """A field that must be a list of texts; numbers in it count as text.

    Raises:
        ValueError: It isn't; the message names the place.
    """
    value = row[field]
    if not isinstance(value, (list, tuple)) or not all(map(_is_text, value)):
        raise ValueError(f"{place}: {field} must be a {what}, not {value!r:.60}")
    return [str(entry) for entry in value]


def _is_text(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


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
