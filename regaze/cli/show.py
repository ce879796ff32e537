"""show: what a run has answered so far, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.common import Json, Markdown
from regaze.cli.studies import Profile, all_scores, exit_if_silent, print_scores
from regaze.evals.study import reopen


def show(
    directory: Annotated[Path, typer.Argument(help="A run's directory, finished or not.")],
    profile: Profile = None,
    as_json_: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Score what a run has answered so far and print the table."""
    scores = all_scores(reopen(directory, tuple(profile or ())))
    print_scores(scores, as_json_, as_markdown)
    exit_if_silent(scores)
