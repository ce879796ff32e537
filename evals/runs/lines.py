"""JSON lines that are only ever appended to, as `regaze.evals.runs.records` keeps answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regaze.evals.runs.records import writing


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file; none if it isn't there.

    A last line without its line end was cut off by a crash and doesn't count.

    Raises:
        ValueError: Another line isn't a JSON object; the message names file and line.
    """
    *lines, _cut_off = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}): remove that line, or the whole file "
                "to start again"
            ) from error
    return rows


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines and wait until they are on the disk.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with writing(path), path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
