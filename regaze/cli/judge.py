"""The commands about a judge of your own: judge export and judge score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli import common
from regaze.cli.common import Json
from regaze.evals.judging import VERDICTS, export_answers, score_verdicts
from regaze.evals.reports import tables
from regaze.evals.study import as_json

judge = typer.Typer(
    no_args_is_help=True, help="Let a judge of your own rate the answers of a run of mmhal."
)

Run = Annotated[Path, typer.Argument(help="Directory of a run of mmhal.")]


@judge.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Where the judge's input files go.")],
) -> None:
    """Write the files that MMHal-Bench's own script sends to a judge; nothing is sent here."""
    for path in export_answers(run, folder):
        replies = path.with_suffix("").name + VERDICTS
        common.out.print(f"{path}: put the replies into {replies}", soft_wrap=True, highlight=False)


@judge.command()
def score(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Those files with the judge's replies beside.")],
    as_json_: Json = False,
) -> None:
    """Score a run of MMHal-Bench by what a judge said of its answers."""
    scored = score_verdicts(run, folder)
    if as_json_:
        typer.echo(json.dumps(as_json(scored.scores), ensure_ascii=False))
    else:
        for one in scored.scores:
            common.out.print(tables.render(one))
