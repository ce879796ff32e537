"""ask: one question about one picture, as the model is and with methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli.options import Json, Model, check_text, spread
from regaze.cli.pictures import read_picture
from regaze.cli.terminal import fail, say

With = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", help="A condition: vhr, pai:alpha=0.5, or var+pai. Repeatable."),
]


@spread
def ask(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.")],
    image: Annotated[
        Path | None, typer.Option("--image", "-i", help="The picture that is asked about.")
    ] = None,
    with_: With = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    as_json: Json = False,
) -> None:
    """Ask one question about a picture, without methods and with each condition given."""
    check_text("--prompt", prompt)
    from regaze.evals.asking.once import ask as answer
    from regaze.evals.asking.once import check
    from regaze.evals.runs.conditions import Condition, baseline_first

    conditions = baseline_first([Condition.parse(text) for text in with_ or ()])
    for condition in conditions:
        if condition.image != "given":
            raise ValueError(f"{condition.label}: a control image is for regaze eval")
        condition.check_given()
    picture = None if image is None else read_picture(image)
    loaded = model.load()
    # What can't act is refused before the first answer is printed.
    for condition in conditions:
        check(loaded, picture, condition.specs)
    found: list[dict[str, Any]] = []
    for condition in conditions:
        asked = answer(loaded, prompt, picture, condition.specs, max_new_tokens=max_new_tokens)
        report = asked.report.to_dict() if condition.specs else None
        text, margin = asked.answer.text, asked.answer.margin
        found.append(
            {"condition": condition.label, "answer": text, "margin": margin, "firing": report}
        )
        if not as_json:
            say(f"{condition.label}: {text}")
            if condition.specs:
                say(str(asked.report))
    if as_json:
        typer.echo(json.dumps({"prompt": prompt, "answers": found}, ensure_ascii=False))
    silent = [one["condition"] for one in found if one["firing"] and not one["firing"]["fired"]]
    if silent:
        why = " (no --image was given)" if image is None else ""
        fail(f"never fired{why}, so these are the unedited model's: {', '.join(silent)}", 1)
