"""Options and steps that the commands about the painting world share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regaze.cli.noise import hush
from regaze.cli.options import exit_if_silent
from regaze.cli.terminal import out, say

if TYPE_CHECKING:
    from regaze.evals.scoring.scored import Scored

Split = Annotated[
    str, typer.Option(help="Split of the world: choose settings on validation, report test.")
]
Denoising = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 turns it off.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that torch computes on.")]
Folder = Annotated[Path, typer.Option("--out", help="Directory of the run.")]


def set_up(threads: int) -> None:
    """Quiet the libraries, and compute on so many threads."""
    import torch

    hush("transformers")
    hush("diffusers")
    torch.set_num_threads(threads)


def report(folder: Path, scored: Scored | None, as_json: bool) -> None:
    """Write the report, print the scores, and end with code 1 if a method never fired.

    Args:
        folder: The run's directory.
        scored: The scores; None in all processes but the first one, which do nothing here.
        as_json: Print JSON instead of a table.
    """
    from regaze.evals.reports import tables
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.scoring.scored import as_json as scores_as_json

    if scored is None:
        return
    write_report(folder / REPORT, [scored])
    if as_json:
        typer.echo(json.dumps(scores_as_json(scored.scores)))
    else:
        out.print(*map(tables.render, scored.scores))
        say(f"Report: {folder / REPORT}")
    exit_if_silent(scored.scores)
