"""eval places: things at their places in the painting world, whose truth is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json
from regaze.cli.pipelines import With
from regaze.cli.terminal import resumable
from regaze.cli.worlds import Denoising, Folder, Guidance, Split, Threads, report, set_up
from regaze.evals.sandbox.painting import PAINTERS


def places(
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"The painter: {' or '.join(PAINTERS)}.")
    ] = "painter-unet",
    with_: With = None,
    split: Split = "validation",
    count: Annotated[
        int, typer.Option("--places", min=1, help="Placements of each kind: the first so many.")
    ] = 50,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="Kind of placement: same, sketch or regions. Repeatable; default: all."
        ),
    ] = None,
    steps: Denoising = 12,
    guidance: Guidance = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Unedited pictures to paint at once.")] = 8,
    threads: Threads = 1,
    folder: Folder = Path("runs/places"),
    as_json: Json = False,
) -> None:
    """Put things at their places with a built-in painter under several conditions, and judge that.

    primecomposer:subject=object names each object; METHOD@wrong gets another item's places.
    """
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import pipelines
    from regaze.evals.places.study import run_places
    from regaze.evals.places.task import PlaceSource
    from regaze.evals.places.world import KINDS
    from regaze.evals.reports.report import REPORT
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.hooks.checks import unknown

    if model not in PAINTERS:
        raise ValueError(unknown("painter", model, PAINTERS))
    set_up(threads)
    conditions = [Condition.parse(text) for text in with_ or ["none"]]
    for condition in conditions:
        condition.check_given()
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
    report(folder, scored, as_json)
