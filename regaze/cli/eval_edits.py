"""eval edits: edits in the painting world, whose truth is known exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.noise import hush
from regaze.cli.options import Json, exit_if_silent
from regaze.cli.pipelines import With
from regaze.cli.terminal import out, resumable, say


def edits(
    with_: With = None,
    split: Annotated[
        str, typer.Option(help="Split of the world: choose settings on validation, report test.")
    ] = "validation",
    count: Annotated[
        int, typer.Option("--edits", min=1, help="Edits of each kind: the first so many.")
    ] = 50,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="Kind of edit: colour, shape or place. Repeatable; default: all."
        ),
    ] = None,
    pictures: Annotated[
        str,
        typer.Option(
            help="Pictures to edit: painted (the model's own) or drawn (the world's, inverted)."
        ),
    ] = "painted",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 12,
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1 turns it off.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits to make at once.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch computes on.")] = 1,
    folder: Annotated[Path, typer.Option("--out", help="Directory of the run.")] = Path(
        "runs/edits"
    ),
    as_json: Json = False,
) -> None:
    """Edit pictures of the built-in painter under several conditions, and judge them."""
    import torch

    from regaze.evals.edits.runner import ARGUMENTS
    from regaze.evals.edits.study import run_edits
    from regaze.evals.edits.task import EditSource
    from regaze.evals.edits.world import KINDS
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import comparison, pipelines
    from regaze.evals.reports import tables
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.evals.sandbox.painting import PAINTERS
    from regaze.evals.scoring.scored import as_json as scores_as_json

    hush("transformers")
    hush("diffusers")
    torch.set_num_threads(threads)
    conditions = list(comparison.parse(with_ or ["none"]).values())
    source = EditSource(split, count, tuple(kinds or KINDS), pictures, seed)
    check_place(folder / RUN, folder / REPORT)
    world = join()
    loaded = pipelines.load(PAINTERS[0])
    with resumable(folder), bars(shown=world.first) as follow:
        scored = run_edits(
            loaded.pipeline,
            conditions,
            source,
            out=folder,
            identity=loaded.identity,
            arguments={**ARGUMENTS, "num_inference_steps": steps, "guidance_scale": guidance},
            batch_size=batch_size,
            progress=follow(loaded.name),
            world=world,
        )
    if scored is None:
        return
    write_report(folder / REPORT, [scored])
    if as_json:
        typer.echo(json.dumps(scores_as_json(scored.scores)))
    else:
        out.print(*map(tables.render, scored.scores))
        say(f"Report: {folder / REPORT}")
    exit_if_silent(scored.scores)
