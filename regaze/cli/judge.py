"""judge export and judge score: a judge of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json, Printed
from regaze.cli.terminal import say

Run = Annotated[Path, typer.Argument(help="Directory of a run of mmhal.")]


def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Folder to write the judge's input files to.")],
) -> None:
    """Write the files that MMHal-Bench's own script sends to a judge; nothing is sent here."""
    from regaze.evals.judging import VERDICTS, export_answers

    for path in export_answers(run, folder):
        replies = path.with_suffix("").name + VERDICTS
        say(f"{path}: put the replies into {replies}")


def score(
    run: Run,
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of the files that were exported, with the judge's replies beside them."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Score a run of MMHal-Bench by what a judge said of its answers."""
    from regaze.evals.judging import score_verdicts

    Printed(as_json).show(score_verdicts(run, folder).scores)
