"""Files that are whole or not there: written aside, synced and moved, under a lock."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"
_PART = ".part"
_LONG_AGO = 3600.0


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a whole file or leave the old one: there is no moment with half of it.

    Gives a path beside ``path`` to write to; when the block ends, what was written there is on the
    disk and then moved. Folders are made.

    Raises:
        OSError: The disk is full or the folder read-only; the message says so in one line.
    """
    with writing(path), aside(path) as temporary:
        yield temporary


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """`replacing` whose errors are the system's own."""
    # Of its own name: processes on several machines may share the folder.
    temporary = path.with_name(f".{secrets.token_hex(6)}{_PART}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk; where folders can't be opened, nothing."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(out: Path) -> None:
    """Remove what killed processes had begun to write in a run's directory and its folders.

    Whoever calls it holds the lock. Beside the folders, reports may be written without it; what is
    there counts as left behind after an hour.
    """
    for path in out.rglob(f".*{_PART}"):
        if path.parent != out or time.time() - path.stat().st_mtime > _LONG_AGO:
            with writing(path):
                path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole, see `replacing`."""
    data = text.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole; NaN is not JSON and must have become ``None``."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It isn't JSON; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing to a run's directory.

    Whoever holds the lock may take it again. It goes with the process, so a killed run leaves none
    behind.

    Raises:
        OSError: Another process holds it, or the folder can't be written.
    """
    path = out.resolve() / LOCK
    new = [folder for folder in path.parents if not folder.exists()]
    lock = FileLock(path, blocking=False, is_singleton=True)
    try:
        with writing(path):
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        if not path.exists():  # Its holder removed it, and the folder, while this one waited.
            lock.release()
            raise Timeout(str(path))
    except Timeout:
        raise BlockingIOError(
            f"another process is writing to {out}: wait until it is done, or give another --out"
        ) from None
    try:
        yield
    except BaseException:
        _remove_empty(path, new)
        raise
    finally:
        lock.release()


def _remove_empty(lock: Path, new: Sequence[Path]) -> None:
    """Remove folders that were made for a run that then was refused, and holds but its lock.

    Args:
        lock: The lock's file.
        new: The folders, the innermost first.
    """
    with suppress(OSError):  # Somebody else put something there.
        if new and [path.name for path in lock.parent.iterdir()] == [lock.name]:
            lock.unlink()
            for folder in new:
                folder.rmdir()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error on writing it, and say that the run can go on later."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Finished answers are kept: once "
            "that is put right, the same command carries on"
        ) from error
