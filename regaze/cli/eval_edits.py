"""eval edits: edits in the painting world, whose truth is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json
from regaze.cli.pipelines import With
from regaze.cli.terminal import resumable
from regaze.cli.worlds import Denoising, Folder, Guidance, Split, Threads, report, set_up


def edits(
    with_: With = None,
    split: Split = "validation",
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
    steps: Denoising = 12,
    guidance: Guidance = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits to make at once.")] = 8,
    threads: Threads = 1,
    folder: Folder = Path("runs/edits"),
    as_json: Json = False,
) -> None:
    """Edit pictures of the built-in painter under several conditions, and judge them."""
    from regaze.evals.edits.runner import ARGUMENTS
    from regaze.evals.edits.study import run_edits
    from regaze.evals.edits.task import EditSource
    from regaze.evals.edits.world import KINDS
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import comparison, pipelines
    from regaze.evals.reports.report import REPORT
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.evals.sandbox.painting import PAINTERS

    set_up(threads)
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
    report(folder, scored, as_json)
