"""JSON lines that are only ever appended to; each of several processes has a file of its own.

A line without its line end was cut off by a crash and doesn't count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from regaze.evals.runs.files import sync_folder, write_text, writing

_T = TypeVar("_T")


def read(path: Path, parse: Callable[[bytes], _T], what: str = "line") -> list[_T]:
    """All whole lines of a file; none if it isn't there.

    Args:
        path: The file.
        parse: Makes something of a line.
        what: The name of a line's content, for errors.

    Raises:
        ValueError: A line can't be parsed; the message names file and line.
    """
    *lines, _cut_off = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not {what} ({' '.join(str(error).split())}): remove "
                "that line, or the whole file to start again"
            ) from error
    return found


def dump(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines and wait until they are on the disk.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    data = "".join(map(dump, rows)).encode()
    if not data:
        return
    with writing(path):
        new = not path.exists()
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def repair(path: Path) -> None:
    """Remove a last line that a crash cut off, so that the next one starts on its own line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with writing(path):
            os.truncate(path, whole)


def own(path: Path, rank: int) -> Path:
    """The file to which a process appends; the first one's is the one that stays."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def every(path: Path) -> list[Path]:
    """The files of all processes; several only until they have finished."""
    return [path, *sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))]


def settle(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put what all processes wrote into one file; if it is already, nothing is touched.

    The new file is in its place before old ones are removed, so a crash in between loses nothing.

    Args:
        path: The file that stays.
        rows: All lines in the order that they shall have.
    """
    text = "".join(map(dump, rows))
    if rows and (not path.exists() or path.read_bytes() != text.encode()):
        write_text(path, text)
    for other in every(path)[1:]:
        with writing(other):
            other.unlink()
