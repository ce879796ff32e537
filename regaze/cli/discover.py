"""discover sinks and discover heads: what a method needs to know of a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box

from regaze.cli.options import Json, Model, spread
from regaze.cli.pipelines import Call, Seeds, Source, WorldPrompts, read_seeds
from regaze.cli.terminal import out, resumable, say
from regaze.evals.reports.whole_words import WholeWords

if TYPE_CHECKING:
    from regaze.evals.pictures.head_hunter import Found

HEAT = "heads.png"


@spread
def sinks(
    model: Model,
    tau: Annotated[
        float | None, typer.Option(help="Threshold of a sink, as a fraction of sqrt(hidden size).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the hidden dimensions that mark attention sinks, as VAR needs them."""
    from regaze.interventions import discover_sinks

    loaded = model.load()
    profile = discover_sinks(loaded.model, loaded.processor, tau=tau)
    dims = ",".join(map(str, profile.sink_dims))
    spec = f"var:sink_dims=[{dims}],tau={profile.tau:g}" if dims else None
    if as_json:
        typer.echo(json.dumps({**profile.to_dict(), "spec": spec}))
        return
    if spec is None:
        seen = f"{model.model} has no sink dimensions at tau {profile.tau:g}"
        say(f"{seen}: VAR would never fire on it")
        for dim, first, median in profile.everywhere:
            say(f"dimension {dim} is high on every token: {first:.1f}, median token {median:.1f}")
        return
    table = WholeWords("hidden dimension", "|x| / RMS of the first token", "of the median token")
    for dim, *strengths in zip(profile.sink_dims, profile.strength, profile.elsewhere, strict=True):
        table.add_row(str(dim), *(f"{one:.1f}" for one in strengths))
    out.print(table)
    say(f"--with '{spec}'")


@dataclass(frozen=True)
class SearchPrompts(WorldPrompts):
    """The prompts to paint; heads are chosen on those of validation."""

    split: Annotated[
        str, typer.Option(help="Split of the painting world, where no prompts are given.")
    ] = "validation"
    n_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of each subset of the painting world.")
    ] = 20


@spread
def heads(
    source: Source,
    call: Call,
    prompts: SearchPrompts,
    objective: Annotated[
        str, typer.Option(help="The score to maximise, e.g. pickscore or clip:model=DIR.")
    ] = "painting",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; heads are chosen in each.")] = 1,
    picks: Annotated[int, typer.Option(min=1, help="Heads chosen in each round.")] = 3,
    scale: Annotated[
        float, typer.Option(help="Scale of the guidance away from the perturbed heads.")
    ] = 3.0,
    u: Annotated[float, typer.Option(help="Strength of the perturbation, 0 to 1.")] = 1.0,
    target: Annotated[
        str,
        typer.Option(
            help="Map that heads are perturbed towards: identity, uniform, query_mean or "
            "temperature."
        ),
    ] = "identity",
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Try only this layer's heads. Repeatable.")
    ] = None,
    seeds: Seeds = "1",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of the search. Default: runs/heads-MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the attention heads whose perturbation serves an objective best (HeadHunter)."""
    asked = prompts.of(source.model)
    given = call.arguments
    numbers = read_seeds(seeds)
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import head_hunter, head_tests, scorers
    from regaze.evals.pictures.heat import save_heat
    from regaze.evals.pictures.render import Shot
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.interventions import SoftPAG

    scorer = scorers.parse(objective)
    if not isinstance(scorer, scorers.Scorer) or scorer.compares:
        raise ValueError(f"{objective} doesn't score a picture by itself: it can't be an objective")
    spec = SoftPAG(scale=scale, u=u, target=target)
    search = head_hunter.Search(rounds, picks, spec, None if not layers else tuple(layers))
    shots = [Shot(one.asked or one.text, seed, one.negative) for one in asked for seed in numbers]
    folder = folder or Path("runs") / f"heads-{source.name}"
    check_place(folder / head_hunter.SPEC, folder / HEAT)
    world = join()
    loaded = source.load()
    ready = scorer.load(source.scoring_device)
    with resumable(folder), bars(shown=world.first) as follow:
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
            {**asdict(one), "scores": {head_tests.name_of(h): v for h, v in one.scores.items()}}
            for one in found.rounds
        ]
        typer.echo(
            json.dumps({"spec": found.spec.to_dict(), "rounds": named, "score": found.score})
        )
        return
    out.print(_rounds_table(found))
    for what, name in (("Heads", head_hunter.SPEC), ("Picture", HEAT)):
        say(f"{what}: {folder / name}")
    say(f"--with '{found.spec.label}'")


def _rounds_table(found: Found) -> WholeWords:
    from regaze.evals.pictures import head_tests

    table = WholeWords("round", "before", "chosen, with scores", box=box.SIMPLE_HEAD)
    for number, one in enumerate(found.rounds, 1):
        chosen = (f"{head_tests.name_of(head)} {one.scores[head]:.4g}" for head in one.chosen)
        table.add_row(str(number), f"{one.before:.4g}", ", ".join(chosen))
    table.add_row("all", f"{found.score:.4g}", "on the pictures they were chosen for")
    return table
