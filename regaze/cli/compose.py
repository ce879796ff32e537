"""compose: an object put into a picture, beside both and the object merely pasted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli.options import Json, spread
from regaze.cli.pipelines import Call, Cell, Seeds, Source, With, check_png, read_seeds
from regaze.cli.terminal import fail, say
from regaze.evals.outputs import check_place

_PAINTER = "painter-unet"


@dataclass(frozen=True)
class Composing(Source):
    """The pipeline; the built-in one is that which PrimeComposer can act on."""

    model: Annotated[
        str, typer.Option("--model", "-m", help=f"The pipeline: {_PAINTER}, a folder or a Hub id.")
    ] = _PAINTER


@spread
def compose(
    source: Composing,
    call: Call,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the whole picture shows.")],
    background: Annotated[Path, typer.Option(help="The picture that something is put into.")],
    thing: Annotated[
        Path,
        typer.Option("--object", help="A picture of the object; it may be transparent around it."),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Where the object is in its picture: a picture, light inside, or a .npy file. "
            "Default: where it is opaque."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="Where the object goes: left,top,right,bottom in shares of the background. "
            "Default: "
            "where it lies in its own picture."
        ),
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="A word of the prompt for the object. Repeatable.")
    ] = None,
    with_: With = None,
    seeds: Seeds = "2",
    file: Annotated[Path, typer.Option("--out", "-o", help="File of the strip, a PNG.")] = Path(
        "composed.png"
    ),
    cell: Cell = None,
    as_json: Json = False,
) -> None:
    """Put an object into a picture under several conditions (default: primecomposer)."""
    check_png(file)
    folder = file.with_suffix("")
    check_place(file, folder / "background")
    numbers, place, given = read_seeds(seeds), _box(box), call.arguments
    from regaze.evals.outputs import whole
    from regaze.evals.pictures import comparison, grid
    from regaze.evals.places import composing
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import distinct_names

    conditions = comparison.parse(with_ or ["primecomposer"])
    asked = composing.Asked(
        prompt, str(background), str(thing), None if mask is None else str(mask), place,
        None if subject is None else tuple(subject),
    )  # fmt: skip
    loaded = source.load()
    arguments = {**loaded.arguments, **given}
    with bars() as follow:
        arranged, composed = composing.compose(
            loaded, conditions, asked, numbers, arguments, progress=follow(loaded.name)
        )
    about: dict[str, Any] = {
        "model": loaded.identity,
        "pipeline": type(loaded.pipeline).__name__,
        "settings": arguments,
        "dtype": loaded.dtype,
        "prompt": prompt,
        "background": str(background),
        "object": str(thing),
        "mask": None if mask is None else str(mask),
        "box": place,
        "subject": subject,
        "seeds": numbers,
        "columns": [{"title": one.title, "interventions": list(one.specs)} for one in composed],
    }
    grid.save_png(file, composing.draw_strip(arranged, composed, numbers, prompt, cell), about)
    pictures = {"background": arranged.background, "pasted": arranged.pasted}
    for one in composed:
        for seed, picture in zip(numbers, one.pictures, strict=True):
            pictures[f"{one.title} {seed}"] = picture
    names = distinct_names(pictures)
    for title, picture in pictures.items():
        with whole(folder / f"{names[title]}.png") as path:
            picture.save(path, "png")
    made = {"strip": str(file), "pictures": str(folder)}
    if as_json:
        typer.echo(json.dumps({**made, **about}))
    else:
        for what, where in made.items():
            say(f"{what.capitalize()}: {where}")
    if silent := [one.title for one in composed if one.silent]:
        fail(f"never fired, so these are the unedited pipeline's: {', '.join(silent)}", 1)


def _box(text: str | None) -> tuple[float, ...] | None:
    """The numbers that ``--box`` gives.

    Raises:
        ValueError: It is something else than four numbers.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 4:
        raise ValueError(
            f"--box {text!r}: give left,top,right,bottom in shares of the picture, e.g. "
            "0.5,0.5,0.9,0.9"
        )
    return found
