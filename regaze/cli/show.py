"""show: what a run has answered so far, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Printed, Profile, exit_if_silent, spread
from regaze.cli.studies import tables_of


@spread
def show(
    printed: Printed,
    directory: Annotated[Path, typer.Argument(help="A run's directory, finished or not.")],
    profile: Profile = None,
) -> None:
    """Score what a run has answered so far and print the table."""
    from regaze.evals.reopening import reopen

    scores = tables_of(reopen(directory, tuple(profile or ())))
    printed.show(scores)
    exit_if_silent(scores)
