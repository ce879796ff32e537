"""Scores kept beside the answers, so that showing a run again needs no second bootstrap.

They are found again by a digest of all they were made of: tallies, margins, metrics, draws and the
code of this package. Where anything differs, or the file is damaged, they are made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError

from regaze.evals.runs import files
from regaze.evals.scoring.compare import Comparison, Score
from regaze.evals.scoring.tallies import Tallies

KEPT = ".scored.json"
_AT_MOST = 4  # profiles of a run, and what it had answered a while ago

Found: TypeAlias = list[tuple[Score, Comparison]]


def kept(folder: Path, table: Tallies, draws: int, seed: int, assess: Callable[[], Found]) -> Found:
    """Scores of a table, from a run's directory where they are there already.

    Args:
        folder: The run's directory; nothing is kept where it isn't there or can't be written to.
        table: The tallies that are scored.
        draws: Bootstrap replicates.
        seed: Seed of the bootstrap.
        assess: Makes the scores.
    """
    path = folder / KEPT
    key = hashlib.sha256(f"{_code()} {draws} {seed} {table.digest()}".encode()).hexdigest()
    known: dict[str, Found] = {}
    with suppress(OSError, ValidationError):
        known = _adapter().validate_json(path.read_bytes())
    if key not in known:
        known = {**dict(list(known.items())[1 - _AT_MOST :]), key: assess()}
        with suppress(OSError):
            if folder.is_dir():
                files.write_text(path, _adapter().dump_json(known).decode())
    return known[key]


@cache
def _code() -> str:
    """Digest of this package's files."""
    folder = Path(__file__).parent
    return files.digest([path.read_text("utf-8") for path in sorted(folder.glob("*.py"))])


@cache
def _adapter() -> TypeAdapter[dict[str, Found]]:
    # Undefined metrics are NaN.
    return TypeAdapter(dict[str, Found], config=ConfigDict(ser_json_inf_nan="constants"))
