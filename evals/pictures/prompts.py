"""Prompts to paint: from the command line, a file, or the painting world's own splits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals.benchmarks.data import read_records, read_text
from regaze.evals.sandbox.painting import scenes
from regaze.hooks.checks import shown


@dataclass(frozen=True)
class Prompt:
    """A prompt to paint.

    Attributes:
        id: Unique in its list, e.g. ``0003``.
        text: The prompt, as scorers and readers get it.
        group: Subset that it belongs to; scores are given per group.
        asked: The prompt that the pipeline gets, where that is something else.
        negative: The negative prompt that goes with it.
    """

    id: str
    text: str
    group: str = "all"
    asked: str = ""
    negative: str = ""


def read(path: Path) -> list[Prompt]:
    """Read prompts from a file, in UTF-8 or in UTF-16 with its mark.

    Args:
        path: Text with a prompt a line, empty lines left out; or JSON lines or a JSON list
            (``.jsonl``, ``.json``) of objects with ``prompt`` and, as they like, ``id``,
            ``negative`` and ``group`` (or GenEval's ``tag``, or GenEval 2's ``atom_count``).

    Raises:
        ValueError: A line doesn't fit, an id is given twice, or there are no prompts; the message
            names file and line.
        OSError: The file can't be read.
    """
    if path.suffix.lower() in (".jsonl", ".json"):
        return _distinct([(place, _checked(place, row)) for place, row in read_records(path)], path)
    # Not splitlines(): a prompt may hold U+2028, which ends no line of a file.
    lines = enumerate(read_text(path).split("\n"), 1)
    rows = [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]
    if rows and rows[0][1][0] in "{[" and _is_json(rows[0][1]):
        raise ValueError(f"{path} holds JSON: name it .jsonl or .json, or write a prompt a line")
    return _distinct([(place, {"prompt": line}) for place, line in rows], path)


def of(texts: Iterable[str]) -> list[Prompt]:
    """Prompts given one by one.

    Raises:
        TypeError: One is no text.
        ValueError: There is none.
    """
    texts = list(texts) if isinstance(texts, Iterable) else [texts]
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"a prompt is text, got {shown(strange[0])}")
    return _distinct([(f"prompt {n}", {"prompt": text}) for n, text in enumerate(texts, 1)], None)


def painting_world(split: str, subsets: Sequence[str], n: int) -> list[Prompt]:
    """Prompts of the painting world, which its painters know and its checker can check.

    Args:
        split: ``validation`` or ``test``.
        subsets: Some of `regaze.evals.sandbox.painting.SUBSETS`, or ``NEGATION``.
        n: Prompts to draw of each subset. What is drawn again is left out: its pictures would be
            the same ones.

    Raises:
        ValueError: An unknown split or subset.
    """
    found = []
    for subset in dict.fromkeys(subsets):
        drawn = dict.fromkeys(scenes.wanted(split, subset, n))
        for i, wanted in enumerate(drawn):
            asked = (wanted.asked, wanted.negative) if wanted.unwanted else ()
            found.append(Prompt(f"{subset}-{i:04d}", wanted.prompt, subset, *asked))
    return found


def _distinct(rows: Sequence[tuple[str, Mapping[str, Any]]], path: Path | None) -> list[Prompt]:
    where = f"{path} holds" if path else "there are"
    if not rows:
        raise ValueError(f"{where} no prompts: give one a line")
    found: dict[str, tuple[str, Prompt]] = {}
    for number, (place, row) in enumerate(rows):
        key = str(row.get("id", f"{number:04d}"))
        if key in found:
            raise ValueError(f"{found[key][0]} and {place} have the same id {key!r}")
        negative = " ".join(row.get("negative", "").split())
        text = " ".join(row["prompt"].split())
        found[key] = (place, Prompt(key, text, _group(row), negative=negative))
    return [prompt for _, prompt in found.values()]


def _checked(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose fields are what they are taken for."""
    text = row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        told = "has no prompt" if "prompt" not in row else f"has the prompt {text!r:.60}"
        raise ValueError(f"{place} {told}: one JSON object a line, its prompt a text")
    if not isinstance(row.get("negative", ""), str):
        raise ValueError(f"{place}: negative must be text, not {row['negative']!r:.60}")
    for name in ("id", "group", "tag", "atom_count"):
        value = row.get(name, "")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"{place}: {name} must be text or a number, not {value!r:.60}")
    return row


def _group(row: Mapping[str, Any]) -> str:
    if "atom_count" in row and "group" not in row:
        return f"{row['atom_count']} atoms"
    return str(row.get("group", row.get("tag", "all")))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line in ("{", "[")
    return True
