"""Output to the terminal: text as it is, and mistakes in one line."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

_STOPPED = 130
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Terminal(Console):
    """A console that shows what users named as they named it.

    Brackets are no markup, and a control character, which could recolour or rewrite what stands
    on the screen, is shown by its number.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give the segments of something to show, without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


out, err = Terminal(), Terminal(stderr=True)


def plain(text: str) -> str:
    r"""A text with its control characters as ``\x1b``; line ends stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) != "Cc" else f"\\x{ord(char):02x}"
        for char in text
    )


def say(*lines: object) -> None:
    """Print lines that no terminal's width breaks."""
    for line in lines:
        out.print(line, soft_wrap=True)


def note(*lines: str) -> None:
    """Tell what is no mistake but should be known, on standard error."""
    for line in lines:
        err.print(Text.assemble(("note: ", "yellow"), line), soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong on standard error and end the command."""
    err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    raise typer.Exit(code)


def stopped(what: str = "") -> NoReturn:
    """End a command that was interrupted, and say what that left."""
    fail("stopped" + (f"; {what}" if what else ""), _STOPPED)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Run work whose finished parts lie in a folder; an interrupt says so."""
    try:
        yield
    except KeyboardInterrupt:
        stopped(f"what is finished is kept in {folder}: the same command carries on")


def in_one_line(error: Exception) -> str:
    """An error as a user should read it."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    # By name, because a command that needs no torch doesn't import it.
    if kind in ("MemoryError", "OutOfMemoryError") or any(
        part in said.lower() for part in _OUT_OF_MEMORY
    ):
        return f"out of memory: give a smaller --batch-size or auto, and another --out ({said})"
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)) and error.strerror:
        return _about_file(Path(os.fsdecode(error.filename)), error)
    if isinstance(error, OSError) and said.startswith("[Errno"):
        return f"cannot read or write: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError)):
        return said or kind
    return f"{kind}: {said} (--debug shows where)" if said else f"{kind} (--debug shows where)"


def _about_file(path: Path, error: OSError) -> str:
    """The system's own error about a file, without its number; a missing one by its nearest."""
    if not isinstance(error, FileNotFoundError):
        return f"cannot use {path}: {error.strerror}"
    try:
        beside = [one.name for one in path.parent.iterdir()]
    except OSError:
        return f"there is no {path}, nor the folder that it should be in"
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"there is no {path}" + (f"; did you mean {path.with_name(near[0])}?" if near else "")


def allow_any_encoding() -> None:
    r"""Print what the output's encoding lacks as ``\u25b2``, rather than fail at the end."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
