"""Prompts to paint: from the command line, a file, or the painting world's own splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals.sandbox.painting import scenes


@dataclass(frozen=True)
class Prompt:
    """A prompt to paint.

    Attributes:
        id: Unique in its list, e.g. ``0003``.
        text: What the pipeline is asked for.
        group: Subset that it belongs to; scores are given per group.
    """

    id: str
    text: str
    group: str = "all"


def read(path: Path) -> list[Prompt]:
    """Read prompts from a file.

    Args:
        path: Text with a prompt a line, empty lines left out; or JSON lines (``.jsonl``) with
            ``prompt`` and, as they like, ``id`` and ``group`` (or GenEval's ``tag``).

    Raises:
        ValueError: A line doesn't fit, an id is given twice, or there are no prompts; the message
            names file and line.
        OSError: The file can't be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return _distinct([(number, {"prompt": line}) for number, line in numbered], path)
    rows = []
    for number, line in numbered:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, Mapping) or not str(row.get("prompt", "")).strip():
            raise ValueError(f'{path}, line {number} has no "prompt": one JSON object a line')
        rows.append((number, row))
    return _distinct(rows, path)


def of(texts: Iterable[str]) -> list[Prompt]:
    """Prompts given one by one."""
    return _distinct([(number, {"prompt": text}) for number, text in enumerate(texts, 1)], None)


def painting_world(split: str, subsets: Sequence[str], n: int) -> list[Prompt]:
    """Prompts of the painting world, which its painters know and its checker can check.

    Args:
        split: ``validation`` or ``test``.
        subsets: Some of `regaze.evals.sandbox.painting.scenes.SUBSETS`.
        n: Prompts to draw of each subset. What is drawn again is left out: its pictures would be
            the same ones.

    Raises:
        ValueError: An unknown split or subset.
    """
    found = []
    for subset in dict.fromkeys(subsets):
        texts = dict.fromkeys(wanted.prompt for wanted in scenes.wanted(split, subset, n))
        found += [Prompt(f"{subset}-{i:04d}", text, subset) for i, text in enumerate(texts)]
    return found


def _distinct(rows: Sequence[tuple[int, Mapping[str, Any]]], path: Path | None) -> list[Prompt]:
    where = f"{path} holds" if path else "there are"
    if not rows:
        raise ValueError(f"{where} no prompts: give one a line")
    found: dict[str, tuple[int, Prompt]] = {}
    for place, (number, row) in enumerate(rows):
        key = str(row.get("id", f"{place:04d}"))
        if key in found:
            raise ValueError(f"{path}, lines {found[key][0]} and {number} have the same id {key!r}")
        group = str(row.get("group", row.get("tag", "all")))
        found[key] = (number, Prompt(key, " ".join(str(row["prompt"]).split()), group))
    return [prompt for _, prompt in found.values()]
