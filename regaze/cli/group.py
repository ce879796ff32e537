"""The group of all commands: how one is found, and what becomes of an error in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from regaze.cli import noise
from regaze.cli.terminal import allow_any_encoding, fail, in_one_line, plain, stopped

# Options whose text may be empty, or whose command says why not.
_TEXTS = ("--prompt", "-p", "--negative")
# Errors about the command line itself; typer says them. Newer typers hold click within.
_USAGE: Any = next(one for one in typer.BadParameter.mro() if one.__name__ == "ClickException")


class Commands(TyperGroup):
    """Says in one line what is wrong; ``--debug`` shows where it came up."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command; ``--load`` and ``--debug`` may follow it too."""
        with _clean():
            return super().parse_args(ctx, _hoisted(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; ``eval images`` is one of its own beside ``eval BENCHMARK``."""
        _check_filled(args)
        pair = " ".join(args[:2])
        return super().resolve_command(ctx, [pair, *args[2:]] if pair in self.commands else args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error ends it with exit code 2."""
        allow_any_encoding()
        debug = bool(ctx.params.get("debug"))
        noise.configure(shown=debug)
        try:
            for path in ctx.params.get("load") or ():
                from regaze.interventions import plugins

                plugins.load_file(Path(path))  # Older typers convert after this.
            with _clean():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            stopped()
        except (_USAGE, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                raise
            fail(in_one_line(error), 2)


def _check_filled(args: list[str]) -> None:
    """Refuse an empty value, as an unset variable leaves it: a path would be the folder one is in.

    Raises:
        ValueError: A value is empty; the message names its option.
    """
    for before, one in pairwise(["", *args]):
        name, equals, value = one.partition("=")
        if one == "" and before not in _TEXTS:
            raise ValueError(f"{before if before.startswith('-') else 'an argument'} is empty")
        if one.startswith("--") and equals and not value and name not in _TEXTS:
            raise ValueError(f"{name} is empty")


@contextmanager
def _clean() -> Iterator[None]:
    """Let no control character of a mistyped argument reach the terminal."""
    try:
        yield
    except _USAGE as error:
        error.message = plain(error.message)
        raise


def _hoisted(args: list[str]) -> list[str]:
    """The arguments with those first that are of no single command."""
    first: list[str] = []
    rest: list[str] = []
    at = 0
    while at < len(args):
        if args[at] == "--":
            break
        if args[at] == "--load" and at + 1 < len(args):
            first += args[at : at + 2]
            at += 1
        elif args[at] == "--debug" or args[at].startswith("--load="):
            first.append(args[at])
        else:
            rest.append(args[at])
        at += 1
    return [*first, *rest, *args[at:]]
