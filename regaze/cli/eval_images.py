"""eval images: pictures under several conditions, scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box

from regaze.cli.options import Json, exit_if_silent, spread
from regaze.cli.pipelines import Call, Seeds, Source, With, WorldPrompts, read_seeds
from regaze.cli.terminal import out, resumable, say
from regaze.evals.reports.whole_words import WholeWords
from regaze.evals.sandbox.painting import PAINTERS

if TYPE_CHECKING:
    from regaze.evals.pictures.scorers.sets import SetScore


@spread
def images(
    source: Source,
    call: Call,
    prompts: WorldPrompts,
    with_: With = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            "--scorer",
            "-s",
            help="A score: painting, clip:model=DIR, pickscore, fid, ...; a wrong name gets a "
            "list of "
            "all. Repeatable.",
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures that ssim, psnr and lpips compare with. Default: the unedited "
            "ones."
        ),
    ] = None,
    seeds: Seeds = "4",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run. Default: runs/images-MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Paint prompts with several seeds under several conditions, and score the pictures."""
    given = call.arguments
    asked = prompts.of(source.model)
    numbers = read_seeds(seeds)
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import comparison, scorers, study
    from regaze.evals.pictures.stored import PictureSource
    from regaze.evals.reports import tables
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.evals.scoring.compare import to_json
    from regaze.evals.scoring.scored import as_json as scores_as_json

    if not scores and source.model not in PAINTERS:
        raise ValueError(f"--score is missing: one or more of {', '.join(scorers.names())}")
    conditions = list(comparison.parse(with_ or ["none"]).values())
    chosen = [scorers.parse(text) for text in scores or ["painting"]]
    single = [one for one in chosen if isinstance(one, scorers.Scorer)]
    painted = PictureSource(
        tuple(asked),
        tuple(numbers),
        tuple(one.label for one in single),
        str(references.resolve()) if references else None,
    )
    if len({item.cluster for item in painted.task.items}) < 2:
        raise ValueError("intervals are over prompts, so they need at least two prompts")
    folder = folder or Path("runs") / f"images-{source.name}"
    check_place(folder / RUN, folder / REPORT)
    world = join()
    if world.first:
        scorers.try_out(chosen, [one.text for one in asked])
        study.check_references(painted)
    loaded = source.load()
    with resumable(folder), bars(shown=world.first) as follow:
        done = study.run_images(
            painted,
            loaded,
            conditions,
            {**loaded.arguments, **given},
            out=folder,
            sets=[one for one in chosen if isinstance(one, scorers.SetScorer)],
            device=source.scoring_device,
            follow=follow,
            batch_size=call.batch_size,
            world=world,
        )
    if done is None:
        return
    finished, of_sets = done.scored, done.sets
    write_report(folder / REPORT, [finished])
    if as_json:
        typer.echo(json.dumps({**scores_as_json(finished.scores), "sets": to_json(of_sets)}))
    else:
        out.print(*map(tables.render, finished.scores))
        if of_sets:
            out.print(_sets_table(of_sets))
        say(f"Report: {folder / REPORT}")
        if done.samples:
            say(f"Samples: {done.samples}")
    exit_if_silent(finished.scores)


def _sets_table(found: Mapping[str, Sequence[SetScore]]) -> WholeWords:
    from regaze.evals.pictures.scorers.sets import FEW

    table = WholeWords(
        "set", "metric", "value", "sd", "pictures", "references", "by", box=box.SIMPLE_HEAD
    )
    for label, measured in found.items():
        for one in measured:
            sd = "" if one.sd is None else f"{one.sd:.4g}"
            few = " (few: indicative)" if one.metric == "fid" and one.n < FEW else ""
            n_reference = "" if one.n_reference is None else str(one.n_reference)
            value = f"{one.value:.4g}{few}"
            table.add_row(label, one.metric, value, sd, str(one.n), n_reference, one.rules)
    return table
