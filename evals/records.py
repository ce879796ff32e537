"""What a run leaves on disk: answers as append-only JSON lines and one manifest per condition.

A line reaches the disk before the next batch starts, so a killed process loses at most the batch
it was working on, and the same command carries on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PREDICTIONS = "predictions.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Record:
    """One item's raw answer, or why there is none.

    Attributes:
        id: The item's id.
        cluster: The item's image.
        text: The answer as the model gave it, special tokens removed, nothing else changed.
        n_prompt_tokens: Prompt tokens without padding, image columns included.
        n_image_tokens: Image columns among them.
        n_new_tokens: Generated tokens, the end token included.
        finish: ``eos``, ``length`` (cut at the limit) or ``error``.
        seconds: The batch's time divided by its items.
        attempt: 1 for the first try; every resumed run tries an item with an error once more.
        error: What went wrong, where ``finish`` is ``error``.
    """

    id: str
    cluster: str
    text: str = ""
    n_prompt_tokens: int = 0
    n_image_tokens: int = 0
    n_new_tokens: int = 0
    finish: Literal["eos", "length", "error"] = "eos"
    seconds: float = 0.0
    attempt: int = 1
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.error is None


class ConfigMismatchError(ValueError):
    """A folder holds answers that were made with other settings."""


def folder_name(label: str) -> str:
    """A condition's label as a folder name that every file system takes."""
    name = re.sub(r"[^\w.,=+-]", "_", label)
    if len(name) <= 80:
        return name
    return f"{name[:64]}~{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> dict[str, Record]:
    """Read answers: for each id its last answer, or its last error where it has no answer.

    A last line without its line end was cut off by a crash and doesn't count.

    Raises:
        ValueError: Another line isn't a record; the message names file and line.
    """
    records: dict[str, Record] = {}
    if not path.exists():
        return records
    *lines, _cut_off = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not an answer ({error}): remove that line, or the "
                "whole file to start again"
            ) from error
        known = records.get(record.id)
        if known is None or record.ok or not known.ok:
            records[record.id] = record
    return records


def repair(path: Path) -> None:
    """Remove a last line that a crash cut off, so that the next one starts on its own line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with writing(path):
            os.truncate(path, whole)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records and wait until they are on the disk.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    lines = "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in records)
    if not lines:
        return
    with writing(path), path.open("ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: there is no moment with half of it.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN is not JSON and must have become ``None``."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It isn't JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that answers already in ``folder`` were made with the same settings.

    Raises:
        ConfigMismatchError: They weren't, or nothing says how they were made; the message lists
            the settings that differ.
    """
    path = folder / MANIFEST
    if not path.exists():
        if (folder / PREDICTIONS).exists():
            raise ConfigMismatchError(
                f"{folder} holds answers but no {MANIFEST} that says how they were made: give "
                "another --out"
            )
        return
    stored = dict(_flat(read_json(path)["config"]))
    given = dict(_flat(json.loads(json.dumps(config))))
    keys = [key for key in {**stored, **given} if stored.get(key) != given.get(key)]
    if keys:
        shown = "; ".join(
            f"{key}: {_brief(stored.get(key))} there, {_brief(given.get(key))} now"
            for key in keys[:4]
        )
        more = f"; and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise ConfigMismatchError(
            f"{folder} holds answers made with other settings ({shown}{more}). Answers are never "
            "mixed: give another --out, or go back to those settings"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error on writing it, and say that the run can go on later."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Finished answers are kept: once "
            "that is put right, the same command carries on"
        ) from error


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists under dotted keys."""
    children: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        children = enumerate(value)
    else:
        yield prefix, value
        return
    for key, child in children:
        yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
