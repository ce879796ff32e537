"""The command that makes benchmarks of one's own pictures: build pope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regaze.cli.options import Json
from regaze.cli.terminal import say
from regaze.evals.outputs import check_place, whole

if TYPE_CHECKING:
    from regaze.evals.benchmarks.pope_files import Built
    from regaze.evals.polling import Kind

_IMAGES = 500


def pope(
    annotations: Annotated[
        list[Path],
        typer.Option(
            "--annotations",
            help="What the pictures show: COCO's instances (JSON), a folder of Pascal-VOC files "
            "(XML), a table with the "
            "columns image and object (CSV), or POPE's lines of image and objects. Repeatable.",
        ),
    ],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    file: Annotated[
        Path, typer.Option("--out", help="File to write the questions to, as JSON lines.")
    ],
    strategy: Annotated[
        str, typer.Option(help="How absent objects are chosen, separated by commas.")
    ] = "random,popular,adversarial",
    n_images: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Pictures to draw. Default: {_IMAGES}, or all where there are fewer."
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option(help="Questions per picture and strategy, half of them yes.")
    ] = 6,
    min_images: Annotated[
        int, typer.Option(min=1, help="Leave out classes that fewer pictures show.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Build POPE's yes/no questions about your own pictures, by its own rules."""
    from regaze.evals.benchmarks.annotated import read_objects
    from regaze.evals.benchmarks.pope_files import build

    kinds = _kinds(strategy)
    check_place(file)
    found = read_objects(annotations, images)
    made = build(found, kinds, images=n_images, questions=questions, seed=seed, rarest=min_images)
    with whole(file) as path:
        path.write_text(made.text, encoding="utf-8")
    if as_json:
        told = {"out": str(file), "seed": seed, "form": found.form, **made.to_dict()}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    told_lines = [
        f"{file}: {len(made.records)} questions about {made.images} pictures ({', '.join(kinds)}), "
        f"from {found.form}",
        *_notes(made, seed, n_images),
    ]
    if found.absent:
        told_lines.append(f"{found.absent} annotated pictures are not in {images}")
    if found.extra:
        told_lines.append(f"{found.extra} pictures of {images} are not annotated")
    told_lines.append(f"Ask: regaze eval pope --questions {file} --images {images}")
    say(*told_lines)


def _kinds(text: str) -> list[Kind]:
    from regaze.evals.polling import KINDS
    from regaze.hooks.checks import unknown

    named = [part.strip() for part in text.split(",") if part.strip()]
    if strange := [name for name in named if name not in KINDS]:
        raise ValueError(unknown("strategy", strange[0], KINDS))
    if not named:
        raise ValueError(f"--strategy is one or more of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in named]


def _notes(made: Built, seed: int, asked: int | None) -> list[str]:
    notes = []
    if made.drawn:
        notes.append(f"{made.images} of {made.usable} usable pictures are drawn with seed {seed}")
    elif asked is None and made.usable < _IMAGES:
        notes.append(f"{made.usable} pictures can be asked about, fewer than {_IMAGES}: all are")
    for kind, number in made.at_random.items():
        if kind != "random" and number:
            total = sum(row["category"] == kind for row in made.records) // 2
            notes.append(
                f"{number} of {total} {kind} questions had no ranked class left and ask for one at "
                "random, as POPE's rule says"
            )
    if made.rare:
        names = ", ".join(f"{name} ({number})" for name, number in made.rare.items())
        notes.append(f"too rare to be asked for, with pictures that show them: {names}")
    return notes
