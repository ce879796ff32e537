"""discover heads-lvlm: the heads that a method for vision-language models should act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box

from regaze.cli.analyse import Asked
from regaze.cli.options import Json, Model, spread
from regaze.cli.terminal import out, say
from regaze.evals.reports.whole_words import WholeWords

if TYPE_CHECKING:
    from regaze.evals.analysis.search import Found

RESULT, PICTURE = "heads.json", "heads.png"


@spread
def heads_lvlm(
    method: Annotated[
        str,
        typer.Argument(
            help="The method, e.g. adhh or pasta:spans=[<image>]; its heads= and layers= are "
            "replaced."
        ),
    ],
    asked: Asked,
    model: Model,
    by: Annotated[
        str | None,
        typer.Option(
            help="What heads are ranked by. margin: what the method on one head does for the right "
            "answer of yes/no questions; attribution: how much a head speaks for objects that "
            "aren't there, in captions (chair). Default: what the benchmark allows."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Heads to keep.")] = 5,
    layer: Annotated[
        list[int] | None, typer.Option(help="Try only this layer's heads. Repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are read at once.")] = 8,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of the search. Default: runs/heads-METHOD-MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the heads that a method should act on, by PASTA's profiling or AD-HH's attribution."""
    from regaze.hooks.checks import check_choice
    from regaze.interventions.lvlm.head_search import check_rankable
    from regaze.interventions.parsing import parse

    spec = parse(method)
    check_rankable(spec)
    ranked_by = by or ("attribution" if asked.benchmark == "chair" else "margin")
    check_choice("heads-lvlm", "--by", ranked_by, ("margin", "attribution"))
    if ranked_by == "attribution" and layer:
        raise ValueError("attribution tries all heads: --layer goes with --by margin")
    from regaze.evals.analysis import drawing, search
    from regaze.evals.analysis.asked import Subject, pick
    from regaze.evals.asking.generation import Answerer
    from regaze.evals.outputs import check_place
    from regaze.evals.runs import files
    from regaze.evals.runs.progress import bars

    source = asked.source(model.model)
    folder = folder or Path("runs") / f"heads-{spec.name}-{Path(model.model).name}"
    check_place(folder / RESULT, folder / PICTURE)
    task = source.tasks()[0]
    search.check_task(task, ranked_by)
    loaded = model.load()
    answerer = Answerer(loaded.model, loaded.processor, task.max_new_tokens)
    subject = Subject(answerer, task, pick(task.items, asked.limit), batch_size)
    with bars() as follow:
        if ranked_by == "margin":
            found = search.by_margin(subject, spec, layers=layer, progress=follow("heads"))
        else:
            found = search.by_attribution(subject, progress=follow("captions"))
    measured = int((~found.values.isnan()).sum())
    result = search.Found(
        method=spec.label,
        by="margin" if ranked_by == "margin" else "attribution",
        model=str(loaded.identity["name"]),
        task=source.title,
        items=len(subject.items),
        heads=found.top(min(top, measured)),
        map=found,
    )
    files.write_json(folder / RESULT, result.to_dict())
    drawing.save(folder / PICTURE, [found], result.heads)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    out.print(_table(result))
    for what, name in (("Heads", RESULT), ("Picture", PICTURE)):
        say(f"{what}: {folder / name}")
    more = method.partition(":")[2]
    say(f"--with '{spec.name}:heads=@{folder / RESULT}{',' * bool(more)}{more}'")


def _table(found: Found) -> WholeWords:
    table = WholeWords("head", found.map.name, box=box.SIMPLE_HEAD)
    for layer, head in found.heads:
        table.add_row(f"L{layer}H{head}", f"{float(found.map.values[layer, head]):.3g}")
    return table
