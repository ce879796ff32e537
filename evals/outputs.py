"""Files that a command makes at one go: their place is tested before the work, and they are whole.

Unlike a run's files they can't be gone on with, so a place that can't be written must be known
before an hour of painting.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regaze.evals.runs.files import aside


def check_place(*paths: Path) -> None:
    """Check that files can be written, and leave nothing behind.

    Raises:
        OSError: One can't; the message says why.
    """
    for path in paths:
        with _named(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with suppress(FileNotFoundError):
                path.lstat()  # a name that is too long, a file among its folders
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part"):
                pass


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file aside, on the disk, and move it to its place; folders are made.

    Raises:
        OSError: It can't be written; the message names it.
    """
    with _named(path), aside(path) as temporary:
        yield temporary


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # A name may hold what no file's may.
        reason = error.strerror if isinstance(error, OSError) else None
        raise OSError(f"cannot write {path}: {reason or error}") from error
