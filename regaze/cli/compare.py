"""compare: the same pictures under several conditions, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json, spread
from regaze.cli.pipelines import Call, Cell, Prompts, Seeds, Source, With, check_png, read_seeds
from regaze.cli.terminal import fail, say
from regaze.evals.outputs import check_place


@spread
def compare(
    source: Source,
    call: Call,
    prompts: Prompts,
    with_: With = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values of a field, a column each: softpag.u=0,0.25,0.5,1. Repeatable."),
    ] = None,
    seeds: Seeds = "4",
    file: Annotated[Path, typer.Option("--out", "-o", help="File of the grid, a PNG.")] = Path(
        "grid.png"
    ),
    gif: Annotated[
        bool, typer.Option("--gif", help="Save an animation too, for pipelines that make videos.")
    ] = False,
    cell: Cell = None,
    as_json: Json = False,
) -> None:
    """Paint the same prompts from the same noise under several conditions, side by side."""
    check_png(file)
    movie = file.with_suffix(".gif")
    check_place(file, *([movie] if gif else ()))
    asked = prompts.read()
    numbers = read_seeds(seeds)
    given = call.arguments
    from regaze.evals.pictures import comparison, grid
    from regaze.evals.pictures.render import Shot
    from regaze.evals.runs.progress import bars

    columns = comparison.parse(with_ or (), sweep or ())
    loaded = source.load()
    arguments = {**loaded.arguments, **given}
    shots = [Shot(one.asked or one.text, seed, one.negative) for one in asked for seed in numbers]
    with bars() as follow:
        painted = comparison.compare(
            loaded,
            columns,
            shots,
            arguments,
            batch_size=call.batch_size,
            progress=follow(loaded.name),
        )
    texts, labels = [one.text for one in asked], [column.title for column in painted]
    pictures = [column.pictures for column in painted]
    n_frames = len(pictures[0][0].frames)
    if gif and n_frames == 1:
        raise ValueError(
            f"{source.model} makes single pictures: --gif is for pipelines that make videos"
        )
    about = comparison.describe(loaded, painted, texts, numbers, arguments)
    drawn = grid.draw(labels, grid.blocks(texts, numbers, pictures), cell=cell)
    grid.save_png(file, drawn, about)
    made = {"grid": str(file)}
    if gif:
        frames = [
            grid.draw(labels, grid.blocks(texts, numbers, pictures, frame), cell=cell)
            for frame in range(n_frames)
        ]
        grid.save_gif(movie, frames)
        made["animation"] = str(movie)
    if as_json:
        typer.echo(json.dumps({**made, **about}, ensure_ascii=False))
    else:
        say(*(f"{what.capitalize()}: {where}" for what, where in made.items()))
    if silent := [column.title for column in painted if column.silent]:
        fail(f"never fired, so these columns are the unedited pipeline's: {', '.join(silent)}", 1)
