"""The command line: a file for each command."""

from regaze.cli.commands import app, main

__all__ = ["app", "main"]
