"""discover: what a method needs to know of a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from regaze.cli.common import Device, DeviceMap, DType, Json, Model, load_model, out
from regaze.cli.pipelines import (
    Call,
    NPrompts,
    PromptFile,
    PromptText,
    Seeds,
    Source,
    Split,
    Subsets,
    asked_for,
    read_seeds,
    spread,
)
from regaze.evals import sandbox
from regaze.evals.pictures import head_hunter, scorers
from regaze.evals.pictures.heat import save_heat
from regaze.evals.pictures.render import Shot
from regaze.evals.runs.distributed import join
from regaze.evals.runs.progress import bars
from regaze.interventions import discover_sinks
from regaze.interventions.diffusion.soft_pag import SoftPAG

HEAT = "heads.png"


def sinks(
    model: Model = sandbox.MODELS[0],
    tau: Annotated[
        float | None, typer.Option(help="Threshold, a fraction of sqrt(hidden size).")
    ] = None,
    dtype: DType = None,
    device: Device = None,
    device_map: DeviceMap = None,
    as_json: Json = False,
) -> None:
    """Find the hidden dimensions that mark attention sinks, as VAR needs them."""
    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map)
    profile = discover_sinks(loaded.model, loaded.processor, tau=tau)
    dims = ",".join(map(str, profile.sink_dims))
    spec = f"var:sink_dims=[{dims}],tau={profile.tau:g}" if dims else None
    if as_json:
        typer.echo(json.dumps({**profile.to_dict(), "spec": spec}))
        return
    if spec is None:
        out.print(
            f"{model} has no sink dimensions at tau {profile.tau:g}: VAR would never fire on it",
            soft_wrap=True,
        )
        return
    table = Table("hidden dimension", "|x| / RMS of the first token")
    for dim, strength in zip(profile.sink_dims, profile.strength, strict=True):
        table.add_row(str(dim), f"{strength:.1f}")
    out.print(table)
    out.print(f"--with '{spec}'", soft_wrap=True, markup=False, highlight=False)


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
    asked = asked_for(source.model, prompt, prompt_file, split, subsets, n_prompts)
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


def _rounds_table(found: head_hunter.Found) -> Table:
    table = Table("round", "before", "chosen, with scores", box=box.SIMPLE_HEAD)
    for number, one in enumerate(found.rounds, 1):
        chosen = (f"{head_hunter.name_of(head)} {one.scores[head]:.4g}" for head in one.chosen)
        table.add_row(str(number), f"{one.before:.4g}", ", ".join(chosen))
    table.add_row("all", f"{found.score:.4g}", "on the pictures they were chosen for")
    return table
