"""discover paro: the order of each head's tokens, and the blocks it needs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Json, spread
from regaze.cli.pipelines import Source, Steps, WorldPrompts, read_seeds
from regaze.cli.terminal import resumable, say


@dataclass(frozen=True)
class FewPrompts(WorldPrompts):
    """The prompts to paint; the paper takes one or two."""

    split: Annotated[
        str, typer.Option(help="Split of the painting world, where no prompts are given.")
    ] = "validation"
    n_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of each subset of the painting world.")
    ] = 1


@spread
def paro(
    source: Source,
    steps: Steps,
    prompts: FewPrompts,
    density: Annotated[
        float, typer.Option(help="Share of the blocks that are kept; the paper's: 0.5, 0.3, 0.2.")
    ] = 0.5,
    block: Annotated[int, typer.Option(min=1, help="Tokens of a block, along each side.")] = 64,
    alpha: Annotated[
        float, typer.Option(help="Weight of sparsity in the choice of orders, against evenness.")
    ] = 1.0,
    orders: Annotated[
        list[str] | None,
        typer.Option(
            "--order", help="Try only this order of frames, rows and columns, e.g. fhw. Repeatable."
        ),
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="Calibrate only this layer. Repeatable.")
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            help="Number of pictures of each prompt, or their seeds: 3,14,15 (a single seed: 3,)."
        ),
    ] = "1",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of the plan. Default: runs/paro-MODEL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Calibrate PAROAttention for a model, a size and a number of steps."""
    asked = prompts.of(source.model)
    given, numbers = steps.arguments, read_seeds(seeds)
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import paro as calibration
    from regaze.evals.pictures.render import Shot
    from regaze.evals.runs.progress import bars
    from regaze.interventions.diffusion.paro_plan import ORDERS
    from regaze.interventions.diffusion.paro_survey import Rule

    rule = Rule(density, block, alpha=alpha, orders=tuple(orders or ORDERS))
    shots = [Shot(one.text, seed) for one in asked for seed in numbers]
    folder = folder or Path("runs") / f"paro-{source.name}"
    check_place(folder / calibration.PLAN)
    loaded = source.load()
    with resumable(folder), bars() as follow:
        plan = calibration.calibrate(
            loaded, shots, rule, out=folder, arguments={**loaded.arguments, **given},
            layers=layers, progress=follow(loaded.name),
        )  # fmt: skip
    path = folder / calibration.PLAN
    spec = f"paro:plan={path}"
    chosen = Counter(order for heads in plan.orders.values() for order in heads)
    if as_json:
        told = {name: list(heads) for name, heads in plan.orders.items()}
        typer.echo(
            json.dumps({"spec": spec, "grid": plan.grid, "steps": plan.steps, "orders": told})
        )
        return
    frames, rows, columns = plan.grid
    say(f"{len(plan.orders)} layers, {frames} x {rows} x {columns} tokens, {plan.steps} steps")
    say("orders: " + ", ".join(f"{name} {count}" for name, count in chosen.most_common()))
    say(f"--with '{spec}'")
