"""edit: a picture before and after an edit, and where it was allowed to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regaze.cli.options import Json, spread
from regaze.cli.pictures import read_picture
from regaze.cli.pipelines import Cell, Seeds, Source, Steps, With, check_png, read_seeds
from regaze.cli.terminal import fail, say
from regaze.evals.outputs import check_place

if TYPE_CHECKING:
    from PIL import Image


@spread
def edit(
    source: Source,
    call: Steps,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the picture shows.")],
    edit_prompt: Annotated[
        str, typer.Option("--edit", "-e", help="What the picture should show instead.")
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--image", "-i", help="A real picture to edit. Default: one that is painted first."
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="A word of the prompt that may change. Repeatable; default: those that differ."
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Where the picture may change, in place of --words: a picture, light inside, a "
            ".npy "
            "file, or all."
        ),
    ] = None,
    with_: With = None,
    seeds: Seeds = "1",
    file: Annotated[Path, typer.Option("--out", "-o", help="File of the strip, a PNG.")] = Path(
        "edit.png"
    ),
    cell: Cell = None,
    as_json: Json = False,
) -> None:
    """Edit a picture by a second prompt under several conditions, and show what may change."""
    check_png(file)
    if words and mask is not None:
        raise ValueError("give either --words or --mask: both say what may change")
    if prompt == edit_prompt:
        raise ValueError(f"--edit is the same as --prompt, {prompt!r}: say what should differ")
    folder = file.with_suffix("")
    check_place(file, folder / "source")
    numbers = read_seeds(seeds)
    if picture is not None and len(numbers) > 1:
        raise ValueError("--seeds is for painted pictures: a real one has its own noise")
    given = call.arguments
    from regaze.evals.edits import editing
    from regaze.evals.outputs import whole
    from regaze.evals.pictures import comparison, grid
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import distinct_names

    conditions = comparison.parse(with_ or ["none", "consistedit"])
    image = None if picture is None else read_picture(picture)
    loaded = source.load()
    arguments = {**loaded.arguments, **given}
    rows: dict[str, tuple[Image.Image, list[editing.Edited]]] = {}
    with bars() as follow:
        for seed in numbers:
            asked = editing.Asked(prompt, edit_prompt, tuple(words or ()), mask, seed)
            label = f"seed {seed}" if picture is None else picture.name
            rows[label] = editing.edit(
                loaded, conditions, asked, arguments, image=image, progress=follow(label)
            )
    title = f"{prompt} > {edit_prompt}"
    edits = next(iter(rows.values()))[1]
    about: dict[str, Any] = {
        "model": loaded.identity,
        "pipeline": type(loaded.pipeline).__name__,
        "settings": arguments,
        "dtype": loaded.dtype,
        "prompt": prompt,
        "edit": edit_prompt,
        "words": words,
        "mask": mask,
        "image": None if picture is None else str(picture),
        "seeds": numbers if picture is None else [],
        "columns": [{"title": one.title, "interventions": list(one.specs)} for one in edits],
    }
    grid.save_png(file, editing.draw_strip(rows, title, cell), about)
    names = distinct_names(["source", *(one.title for one in edits)])
    for label, (before, found) in rows.items():
        shown = {"source": before, **{one.title: one.picture for one in found}}
        for title_, one in shown.items():
            part = folder if len(rows) == 1 else folder / label.replace(" ", "-")
            with whole(part / f"{names[title_]}.png") as path:
                one.save(path, "png")
    made = {"strip": str(file), "pictures": str(folder)}
    if as_json:
        typer.echo(json.dumps({**made, **about}))
    else:
        for what, where in made.items():
            say(f"{what.capitalize()}: {where}")
    if silent := sorted({e.title for _, found in rows.values() for e in found if e.silent}):
        fail(f"never fired, so these are the unedited pipeline's: {', '.join(silent)}", 1)
