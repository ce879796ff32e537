"""The commands that measure pictures: eval images and discover heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from regaze.evals.pictures import comparison, head_hunter, prompts, scorers, study
from regaze.evals.pictures.heat import save_heat
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.render import Shot
from regaze.evals.pictures.runner import run
from regaze.evals.pictures.scorers.sets import FEW, SetScore
from regaze.evals.reports import tables
from regaze.evals.reports.report import REPORT, write_report
from regaze.evals.runs.distributed import join
from regaze.evals.runs.progress import bars
from regaze.evals.sandbox.painting import PAINTERS
from regaze.evals.sandbox.painting.scenes import SUBSETS
from regaze.evals.scoring.compare import to_json
from regaze.evals.study import as_json as scores_as_json
from regaze.interventions.diffusion.soft_pag import SoftPAG

HEAT = "heads.png"

Split = Annotated[str, typer.Option(help="Of the painting world, where no prompts are given.")]
Subsets = Annotated[
    list[str] | None,
    typer.Option("--subset", help=f"{', '.join(SUBSETS)}. Repeatable; default: all."),
]
NPrompts = Annotated[int, typer.Option(min=1, help="Of each subset of the painting world.")]


@spread
def images(
    source: Source,
    call: Call,
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    split: Split = "test",
    subsets: Subsets = None,
    n_prompts: NPrompts = 50,
    with_: With = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--score", "-s", help=f"{', '.join(scorers.names())}. Repeatable."),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="Pictures for ssim, psnr and lpips. Default: the unedited ones."),
    ] = None,
    seeds: Seeds = "4",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run. Default: runs/images-MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Paint prompts with several seeds under several conditions, and score the pictures."""
    conditions = list(comparison.parse(with_ or ["none"]).values())
    given = call.arguments
    asked = _asked(source.model, prompt, prompt_file, split, subsets, n_prompts)
    if not scores and source.model not in PAINTERS:
        raise ValueError(f"--score is missing: one or more of {', '.join(scorers.names())}")
    chosen = [scorers.parse(text) for text in scores or ["painting"]]
    single = [one for one in chosen if isinstance(one, scorers.Scorer)]
    plan = study.Plan(
        tuple(asked),
        tuple(read_seeds(seeds)),
        tuple(one.label for one in single),
        str(references.resolve()) if references else None,
    )
    task = plan.task
    if len({item.cluster for item in task.items}) < 2:
        raise ValueError("intervals are over prompts, so they need at least two prompts")
    folder = folder or Path("runs") / f"images-{source.name}"
    world = join()
    loaded = source.load()
    with bars(shown=world.first) as follow:
        result = run(
            task,
            loaded,
            conditions,
            {**loaded.arguments, **given},
            out=folder,
            batch_size=call.batch_size,
            source=plan.to_dict(),
            progress=follow(loaded.name),
            world=world,
        )
        if not world.first:
            return
        samples = study.draw_samples(result)
        finished = study.score(folder, device=source.scoring_device, progress=follow("scores"))
        sets = [one for one in chosen if isinstance(one, scorers.SetScorer)]
        of_sets = study.score_sets(sets, result, device=source.scoring_device) if sets else {}
    write_report(folder / REPORT, [finished])
    if as_json:
        typer.echo(json.dumps({**scores_as_json(finished.scores), "sets": to_json(of_sets)}))
    else:
        out.print(*map(tables.render, finished.scores))
        if of_sets:
            out.print(_sets_table(of_sets))
        out.print(f"Report: {folder / REPORT}", soft_wrap=True, highlight=False)
        if samples:
            out.print(f"Samples: {samples}", soft_wrap=True, highlight=False)
    if silent := finished.scores[0].silent:
        fail(f"never fired, so not reported: {', '.join(silent)}", 1)


@spread
def heads(
    source: Source,
    call: Call,
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    split: Split = "validation",
    subsets: Subsets = None,
    n_prompts: NPrompts = 20,
    objective: Annotated[
        str, typer.Option(help="The score to maximise, e.g. pickscore or clip:model=DIR.")
    ] = "painting",
    rounds: Annotated[int, typer.Option(min=1, help="How often heads are chosen.")] = 1,
    picks: Annotated[int, typer.Option(min=1, help="Heads chosen in each round.")] = 3,
    scale: Annotated[float, typer.Option(help="Scale of the guidance.")] = 3.0,
    u: Annotated[float, typer.Option(help="Strength of the perturbation, 0 to 1.")] = 1.0,
    target: Annotated[str, typer.Option(help="What heads are perturbed towards.")] = "identity",
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Try only this layer's heads. Repeatable.")
    ] = None,
    seeds: Seeds = "1",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Directory. Default: runs/heads-MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the attention heads whose perturbation serves an objective best (HeadHunter)."""
    scorer = scorers.parse(objective)
    if not isinstance(scorer, scorers.Scorer) or scorer.compares:
        raise ValueError(f"{objective} doesn't score a picture by itself: it can't be an objective")
    spec = SoftPAG(scale=scale, u=u, target=target)
    search = head_hunter.Search(rounds, picks, spec, None if not layers else tuple(layers))
    asked = _asked(source.model, prompt, prompt_file, split, subsets, n_prompts)
    given = call.arguments
    shots = [Shot(one.text, seed) for one in asked for seed in read_seeds(seeds)]
    folder = folder or Path("runs") / f"heads-{source.name}"
    world = join()
    loaded = source.load()
    ready = scorer.load(source.scoring_device)
    with bars(shown=world.first) as follow:
        found = head_hunter.hunt(
            loaded,
            shots,
            lambda images, texts: [
                scorer.value(counts) for counts in ready.score(images, texts, images)
            ],
            search,
            out=folder,
            arguments={**loaded.arguments, **given},
            identity=ready.identity,
            batch_size=call.batch_size,
            progress=follow(loaded.name),
            world=world,
        )
    if not world.first:
        return
    save_heat(folder / HEAT, found, scorer.name)
    if as_json:
        named = [
            {**asdict(one), "scores": {head_hunter.name_of(h): v for h, v in one.scores.items()}}
            for one in found.rounds
        ]
        typer.echo(
            json.dumps({"spec": found.spec.to_dict(), "rounds": named, "score": found.score})
        )
        return
    out.print(_rounds_table(found))
    for what, name in (("Heads", head_hunter.SPEC), ("Picture", HEAT)):
        out.print(f"{what}: {folder / name}", soft_wrap=True, highlight=False)
    out.print(f"--with '{found.spec.label}'", soft_wrap=True, markup=False, highlight=False)


def _asked(
    model: str,
    texts: Sequence[str] | None,
    file: Path | None,
    split: str,
    subsets: Sequence[str] | None,
    n: int,
) -> list[Prompt]:
    """The prompts that are given; for an embedded painter its own world's by default."""
    if texts or file:
        return read_prompts(texts, file)
    if model not in PAINTERS:
        raise ValueError("--prompts is missing: which prompts should be painted?")
    return prompts.painting_world(split, subsets or SUBSETS, n)


def _rounds_table(found: head_hunter.Found) -> Table:
    table = Table("round", "before", "chosen, with scores", box=box.SIMPLE_HEAD)
    for number, one in enumerate(found.rounds, 1):
        chosen = (f"{head_hunter.name_of(head)} {one.scores[head]:.4g}" for head in one.chosen)
        table.add_row(str(number), f"{one.before:.4g}", ", ".join(chosen))
    table.add_row("all", f"{found.score:.4g}", "on the pictures they were chosen for")
    return table


def _sets_table(found: Mapping[str, Sequence[SetScore]]) -> Table:
    table = Table(
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
