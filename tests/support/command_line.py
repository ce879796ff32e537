"""Commands called in this process."""

from __future__ import annotations

from pathlib import Path

import tiny_painter
from typer.testing import CliRunner, Result

from regaze.cli.commands import app

QUICK = ("--steps", "2", "--guidance", "2")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def evaluate(model: str, out: Path, *args: str, images: int = 6) -> Result:
    fixed = ["--split", "test", "--n-images", str(images), "--max-new-tokens", "4"]
    return call("eval", "pope", "--model", model, "--out", str(out), *fixed, *args)


def one_line(result: Result) -> str:
    return " ".join(result.stderr.split())


def on_tiny(command: str, *arguments: str) -> Result:
    return call(*command.split(), "--model", str(tiny_painter.folder()), *arguments)
