"""The commands that make pictures: compare and sites."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from regaze.cli_common import Json, fail, out
from regaze.cli_pipelines import (
    Call,
    PromptFile,
    PromptText,
    Seeds,
    Source,
    With,
    read_prompts,
    read_seeds,
    spread,
)
from regaze.evals.pictures import comparison, grid
from regaze.evals.pictures.render import Shot
from regaze.evals.runs.progress import bars
from regaze.hooks.diffusion import native_grid
from regaze.hooks.diffusion import sites as find_sites
from regaze.hooks.diffusion.host import find_denoisers

_KINDS = {
    "self": "image",
    "joint": "image and text",
    "cross": "text",
    "temporal": "other frames",
    "linear": "sums, not places",
    "other": "not from the image",
}


@spread
def compare(
    source: Source,
    call: Call,
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    with_: With = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="A column per value: softpag.u=0,0.25,0.5,1. Repeatable."),
    ] = None,
    seeds: Seeds = "4",
    file: Annotated[Path, typer.Option("--out", "-o", help="The picture, a PNG.")] = Path(
        "grid.png"
    ),
    gif: Annotated[
        bool, typer.Option("--gif", help="Also an animation, for pipelines that make videos.")
    ] = False,
    cell: Annotated[
        int | None, typer.Option(min=16, help="Longer side of a picture in the grid, in pixels.")
    ] = None,
) -> None:
    """Paint the same prompts from the same noise under several conditions, side by side."""
    if file.suffix.lower() != ".png":
        raise ValueError(
            f"--out must name a .png, got {file}: a grid's settings are kept inside it"
        )
    columns = comparison.parse(with_ or (), sweep or ())
    asked = read_prompts(prompt, prompt_file)
    numbers = read_seeds(seeds)
    given = call.arguments
    loaded = source.load()
    arguments = {**loaded.arguments, **given}
    shots = [Shot(one.text, seed) for one in asked for seed in numbers]
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
    out.print(f"Grid: {file}", soft_wrap=True, highlight=False)
    if gif:
        frames = [
            grid.draw(labels, grid.blocks(texts, numbers, pictures, frame), cell=cell)
            for frame in range(n_frames)
        ]
        grid.save_gif(file.with_suffix(".gif"), frames)
        out.print(f"Animation: {file.with_suffix('.gif')}", soft_wrap=True, highlight=False)
    if silent := [column.title for column in painted if column.silent]:
        fail(f"never fired, so these columns are the unedited pipeline's: {', '.join(silent)}", 1)


@spread
def sites(
    source: Source,
    as_json: Json = False,
) -> None:
    """List the attention layers of a pipeline, and how methods and head lists name them."""
    loaded = source.load()
    found = find_sites(loaded.pipeline)
    denoiser = next(iter((find_denoisers(loaded.pipeline) or {}).values()))
    grids = [native_grid(denoiser, site) for site in found]
    if as_json:
        listed = [{**asdict(site), "grid": cells} for site, cells in zip(found, grids, strict=True)]
        typer.echo(json.dumps(listed))
        return
    table = Table("layer", "name", "attends to", "heads", "tokens", "grid", box=box.SIMPLE_HEAD)
    for site, cells in zip(found, grids, strict=True):
        number = "" if site.layer is None else f"L{site.layer}"
        shown = "" if cells is None else f"{cells[0]} x {cells[1]}"
        table.add_row(number, site.name, _KINDS[site.kind], str(site.heads), site.order, shown)
    out.print(table)
