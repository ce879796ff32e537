"""Requirements on installed libraries whose older versions would answer wrongly, unnoticed."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

OLDEST = {"transformers": "5.18"}
"""As `pyproject.toml` says; pip heeds it, but pip can be told not to."""

BELOW = {"transformers": "5.25"}
"""Likewise: the first version that the tests were never run with."""


def check() -> None:
    """Refuse libraries that are too old or too new.

    Raises:
        ImportError: One is, or is missing.
        SystemExit: Likewise, in the command ``regaze``: its entry point lies in the package that is
            being imported, so that nothing there could turn the error into one line.
    """
    for name, oldest in OLDEST.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or _numbers(found) < _numbers(oldest):
            message = (
                f"regaze needs {name} {oldest} or newer, and found {found}: "
                f"pip install '{name}>={oldest}'"
            )
            _refuse(message)
        if name in BELOW and _numbers(found) >= _numbers(BELOW[name]):
            _refuse(
                f"regaze needs {name} older than {BELOW[name]}, and found {found}: "
                f"pip install '{name}>={oldest},<{BELOW[name]}'"
            )


def _refuse(message: str) -> NoReturn:
    if Path(sys.argv[0]).stem == "regaze":
        raise SystemExit(f"error: {message}")
    raise ImportError(message)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
