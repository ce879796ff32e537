"""eval places: things at their places in the painting world, whose truth is known exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.noise import hush
from regaze.cli.options import Json, exit_if_silent
from regaze.cli.pipelines import With
from regaze.cli.terminal import out, resumable, say
from regaze.evals.sandbox.painting import PAINTERS


def places(
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"The painter: {' or '.join(PAINTERS)}.")
    ] = "painter-unet",
    with_: With = None,
    split: Annotated[
        str, typer.Option(help="Split of the world: choose settings on validation, report test.")
    ] = "validation",
    count: Annotated[
        int, typer.Option("--places", min=1, help="Placements of each kind: the first so many.")
    ] = 50,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="Kind of placement: same, sketch or regions. Repeatable; default: all."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 12,
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1 turns it off.")
    ] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Unedited pictures to paint at once.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch computes on.")] = 1,
    folder: Annotated[Path, typer.Option("--out", help="Directory of the run.")] = Path(
        "runs/places"
    ),
    as_json: Json = False,
) -> None:
    """Put things at their places with a built-in painter under several conditions, and judge that.

    primecomposer:subject=object names each object; METHOD@wrong gets another item's places.
    """
    import torch

    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import pipelines
    from regaze.evals.places.study import run_places
    from regaze.evals.places.task import PlaceSource
    from regaze.evals.places.world import KINDS
    from regaze.evals.reports import tables
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.evals.scoring.scored import as_json as scores_as_json
    from regaze.hooks.checks import unknown

    if model not in PAINTERS:
        raise ValueError(unknown("painter", model, PAINTERS))
    hush("transformers")
    hush("diffusers")
    torch.set_num_threads(threads)
    conditions = [Condition.parse(text) for text in with_ or ["none"]]
    source = PlaceSource(split, count, tuple(kinds or KINDS), seed)
    check_place(folder / RUN, folder / REPORT)
    world = join()
    loaded = pipelines.load(model)
    given = {**loaded.arguments, "num_inference_steps": steps, "guidance_scale": guidance}
    with resumable(folder), bars(shown=world.first) as follow:
        scored = run_places(
            loaded,
            conditions,
            source,
            out=folder,
            arguments=given,
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
