"""tune: a method's settings, chosen on validation scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer
from rich.text import Text

from regaze.cli.options import Json, Model, absolute, spread
from regaze.cli.terminal import out, resumable, say
from regaze.evals.reports.whole_words import WholeWords

if TYPE_CHECKING:
    from regaze.evals.tuning.tuned import Trial, Tuned


@dataclass(frozen=True)
class Search:
    """The method to search settings of, and the questions to search on."""

    PANEL: ClassVar[str] = "Search"

    method: Annotated[
        str,
        typer.Argument(
            help="Method to tune, e.g. vhr; fields that are given, as in vhr:alpha=3, stay."
        ),
    ]
    on: Annotated[str, typer.Option(help="Benchmark to score settings on.")] = "pope"
    trials: Annotated[
        int,
        typer.Option(min=1, help="Settings to try in all; a higher number goes on with a search."),
    ] = 30
    objective: Annotated[
        str | None,
        typer.Option(
            help="Metric to search by. Default: auc of the yes margin, which no moved threshold "
            "changes; for captions f1."
        ),
    ] = None
    n_images: Annotated[int | None, typer.Option(min=2, help="Validation scenes to ask.")] = None
    data: Annotated[
        list[str] | None,
        typer.Option(help="Validation files of your own, never those you report on. Repeatable."),
    ] = None
    images: Annotated[str | None, typer.Option(help="Folder of the images of --data.")] = None
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the search and of the draw of images.")
    ] = 0
    batch_size: Annotated[int, typer.Option(min=1, help="Items per batch.")] = 8
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory of the search. Default: runs/tune-METHOD-BENCHMARK-MODEL."
        ),
    ] = None


@spread
def tune(search: Search, model: Model, as_json: Json = False) -> None:
    """Choose a method's settings on validation scenes, which no test asks."""
    from regaze.evals.benchmarks.source import Source
    from regaze.evals.benchmarks.worlds import SHAPES, home

    source = Source(
        benchmark=search.on,
        data=tuple(map(absolute, search.data or ())),
        images=search.images and absolute(search.images),
        split=(home(model.model) or SHAPES).validation,
        n_images=search.n_images,
        seed=search.seed,
    )
    source.check()
    from regaze.evals.runs.progress import bars
    from regaze.evals.tuning.spaces import some_values, space_of
    from regaze.evals.tuning.tune import tune as run
    from regaze.evals.tuning.tuned import TUNED
    from regaze.interventions import parse

    spec = parse(search.method)
    # What can't be tuned is refused before a model is loaded.
    replace(spec, **some_values(space_of(spec))).check_given()
    name = f"tune-{spec.name}-{search.on}-{Path(model.model).name}"
    folder = search.folder or Path("runs") / name
    loaded = model.load()
    with resumable(folder), bars() as follow:
        found = run(
            loaded,
            spec,
            source,
            out=folder,
            trials=search.trials,
            objective=search.objective,
            seed=search.seed,
            batch_size=search.batch_size,
            progress=follow(f"tuning on {search.on}"),
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False))
    else:
        _show(found)
        say(f"All trials: {folder / TUNED}")


def _show(found: Tuned) -> None:
    metrics = list(dict.fromkeys([found.objective, "accuracy"]))
    metrics = [metric for metric in metrics if metric in found.baseline]
    table = WholeWords("setting", *metrics, "")
    table.add_row("none", *(f"{found.baseline[metric]:.4f}" for metric in metrics), "unedited")
    for trial in (found.usual, *found.trials):
        cells = [f"{trial.metrics[metric]:.4f}" if trial.metrics else "–" for metric in metrics]
        table.add_row(Text(trial.spec.label), *cells, Text(_remark(found, trial)))
    out.print(table)
    best = found.best
    if best is None:
        say("No setting acted on this model, so there is none to recommend.")
        return
    say(f"Chosen by {found.objective} on {found.items} validation items, best of {_tries(found)}:")
    out.print(Text(f"  --with '{best.spec.label}'"), soft_wrap=True)
    out.print(Text(f"  {json.dumps(best.spec.to_dict())}"), soft_wrap=True)
    if best is found.usual:
        say("No trial was better than the method as given.")


def _tries(found: Tuned) -> str:
    return f"{len(found.trials)} trials and the method as given"


def _remark(found: Tuned, trial: Trial) -> str:
    if trial.why_not:
        return trial.why_not
    return "best" if trial is found.best else "as given" if trial is found.usual else ""
