"""measure vas: how much a model looks at the image, beside its system prompt."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json, Model, check_text, spread
from regaze.cli.pictures import read_picture
from regaze.cli.terminal import out, say
from regaze.evals.reports.whole_words import WholeWords


def group() -> None:
    """Measure a model's attention."""


@spread
def vas(
    model: Model,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture to ask about. Repeatable; default: scenes of the built-in world."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A question about each picture. Repeatable; default: Describe the image."
        ),
    ] = None,
    with_: Annotated[
        str | None,
        typer.Option("--with", "-w", help="Methods to attach while measuring: avar, pai+vaf."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Number of scenes, where no pictures are given.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Measure VAS, the ratio of attention to the image and to the system prompt."""
    for text in prompt or ():
        check_text("--prompt", text)
    from regaze.evals.runs.conditions import Condition

    condition = Condition() if with_ is None else Condition.parse(with_)
    condition.check_given()
    if condition.image != "given":
        raise ValueError(
            f"--with {with_}: VAS is measured on the pictures that are given; name only what is to "
            "be attached, as in --with avar"
        )
    from regaze.evals.sandbox.scenes import scene
    from regaze.evals.scoring.attention_mass import measure_vas
    from regaze.hooks import attach
    from regaze.interventions.lvlm.turns import Turns

    loaded = model.load()
    pictures = [read_picture(path) for path in image or ()]
    pictures = pictures or [scene("validation", number).image for number in range(limit)]
    asked = [(one, text) for one in pictures for text in prompt or ["Describe the image."]]
    turns = Turns(loaded.processor)
    inputs = (turns.model_inputs(loaded.model, text, (one,)) for one, text in asked)
    with attach(loaded.model, *condition.specs, processor=loaded.processor):
        found = measure_vas(loaded.model, inputs, loaded.processor)
    if as_json:
        typer.echo(json.dumps({"prompts": len(asked), **asdict(found)}))
        return
    table = WholeWords("layer", "VAS")
    for layer, one in found.layers.items():
        table.add_row(str(layer), f"{one:.3g}")
    out.print(table)
    say(
        f"VAS {found.score:.3g} (log mean {found.log_mean:.3g}); mass on the image "
        f"{found.image:.3f}, on the system prompt {found.system:.3f}; "
        f"{len(asked)} prompts, {found.rows} question rows"
    )
