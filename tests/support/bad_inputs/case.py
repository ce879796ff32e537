"""A bad input, what became of it, and whether that is one clear line."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import regaze
from regaze.cli.commands import app

_PACKAGE = Path(regaze.__file__).parent.parent
_VAGUE = 18
"""Letters of a message that can't say what is wrong and what to do."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: The kind of fault, as a group of cases.
        name: The case's name in its group.
        act: Gives it to regaze; returns "" or what is wrong with the answer.
    """

    kind: str
    name: str
    act: Callable[[], str]


def command(kind: str, *arguments: str, files: Callable[[], Any] | None = None) -> Case:
    """A command that must be refused.

    Args:
        kind: See `Case`.
        *arguments: After ``regaze``.
        files: Makes what the command reads, in the working directory.
    """

    def act() -> str:
        if files is not None:
            files()
        return answered(*arguments)

    return Case(kind, " ".join(arguments)[:160], act)


def answered(*arguments: str) -> str:
    """The fault in a command's answer; "" if it is one clear line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        last = traceback.extract_tb(result.exception.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return f"traceback: {type(result.exception).__name__}: {result.exception} ({where})"
    said = [line for line in result.stderr.splitlines() if line.strip()]
    if result.exit_code == 0:
        return f"taken: {result.output[-200:]!r}"
    if result.exit_code not in (1, 2):
        return f"exit code {result.exit_code}: {said}"
    if said and said[0].startswith(("Usage:", "╭─ Error")):
        return _told(" ".join(line.strip("│╭╰─╮╯ ") for line in said))
    errors = [line for line in said if line.startswith("error: ")]
    # What a bar showed of work that came before is no message, and items without an answer are
    # told of as they come.
    others = [line for line in said if not line.startswith(("error: ", "note: ", "no answer to "))]
    others = [line for line in others if "━" not in line and "-:--:--" not in line]
    if len(errors) != 1 or others:
        return f"{len(said)} lines: {said[:4]}"
    return _told(errors[0])


def _told(message: str) -> str:
    if len(message) < _VAGUE or "Traceback" in message:
        return f"vague: {message!r}"
    if any(ord(letter) < 32 for letter in message):
        return f"control characters: {message!r}"
    return ""


def call(kind: str, name: str, act: Callable[[], Any]) -> Case:
    """Python that must raise an error of regaze's own, of one line."""

    def tried() -> str:
        try:
            found = act()
        except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = Path(os.path.realpath(frames[-1].filename))
            message = str(error)
            named = isinstance(error, OSError) and error.filename is not None
            if not (named or _is_own(own)):
                return f"not its own: {type(error).__name__}: {message} ({own.name})"
            return f"several lines: {message!r}" if "\n" in message else _told(message)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            return (
                f"traceback: {type(error).__name__}: {error} "
                f"({Path(last.filename).name}:{last.lineno})"
            )
        return f"taken: {str(found)[:200]!r}"

    return Case(kind, name, tried)


def _is_own(path: Path) -> bool:
    root = Path(os.path.realpath(Path(__file__).resolve().parents[3]))
    folders = ("hooks", "interventions", "evals", "regaze")
    return any(root / folder in path.parents for folder in folders) or _PACKAGE in path.parents
