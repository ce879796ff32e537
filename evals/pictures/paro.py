"""PAROAttention's calibration: two surveys of a few prompts, a prompt at a time, and a plan.

What a prompt showed is on the disk before the next is painted, so a calibration that was stopped
goes on where it was. The method is in `regaze.interventions.diffusion.paro_survey`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Shot
from regaze.evals.runs import files, meeting, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.hooks.attach import attach
from regaze.hooks.diffusion.host import find_denoisers, host_of, inner
from regaze.interventions.diffusion.paro_plan import Identity, Plan, packed
from regaze.interventions.diffusion.paro_survey import (
    Rule,
    Survey,
    Surveying,
    best_blocks,
    best_orders,
)
from regaze.interventions.diffusion.where import chosen

PLAN = "paro.safetensors"
Parts = Mapping[str, Tensor]


def calibrate(
    loaded: LoadedPipeline,
    shots: Sequence[Shot],
    rule: Rule,
    *,
    out: Path,
    arguments: Mapping[str, Any],
    layers: Sequence[str | int] | None = None,
    progress: Progress = quiet,
) -> Plan:
    """Calibrate, or go on with a calibration that was stopped.

    Args:
        loaded: The pipeline; left as it was found.
        shots: Prompts and seeds; the paper takes one or two prompts.
        rule: The rule that chooses orders and blocks.
        out: Directory; ``paro.safetensors`` in it is the plan.
        arguments: Call arguments; size, number of frames and steps are those that the plan
            is for.
        layers: The layers, as in `PARO.layers`; None: all of self- and joint attention.
        progress: Called with the survey, prompts done and prompts in all.

    Raises:
        ValueError: The pipeline has two denoisers or doesn't say how its tokens lie, prompts differ
            in size, or the directory holds a calibration with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    painter = Painter(loaded.pipeline, arguments)
    denoisers = find_denoisers(loaded.pipeline) or {}
    if len(denoisers) != 1:
        raise ValueError(
            f"paro: {loaded.name} has {len(denoisers)} denoisers, each of which would need a plan "
            "of its own; that isn't known here"
        )
    denoiser = inner(next(iter(denoisers.values())))
    host = host_of(denoiser)
    sites = host.layers if layers is None else chosen("paro", host, layers)
    names = tuple(site.name for site in sites)
    config = {
        "model": {key: value for key, value in loaded.identity.items() if key != "name"},
        "dtype": loaded.dtype,
        "arguments": painter.settings,
        "shots": [list(shot) for shot in shots],
        "noise": NOISE,
        "rule": {**vars(rule), "orders": list(rule.orders)},
        "layers": list(names),
        "regaze": version("regaze"),
    }

    def prepare() -> None:
        if not (out / store.MANIFEST).exists():
            files.write_json(out / store.MANIFEST, {"config": config})

    def look(
        name: str, survey: Callable[[], Survey], keep: Callable[[Survey], Parts]
    ) -> list[Parts]:
        found: list[Parts] = []
        progress(name, 0, len(shots))
        for number, shot in enumerate(shots):
            path = out / f"{name}-{number:03}.safetensors"
            if not path.exists():
                work = survey()
                with attach(loaded.pipeline, Surveying(work, names)):
                    painter.paint([shot])
                about = {"steps": _one(work.steps, "steps"), "grid": _one(work.grids, "sizes")}
                with files.replacing(path) as temporary:
                    save_file(dict(keep(work)), temporary, about)
            found.append(_read(path))
            progress(name, number + 1, len(shots))
        return found

    with meeting.alone(out, {out: config}, prepare, World()):
        first = look("orders", lambda: Survey(rule=rule), _scores)
        orders = {
            name: best_orders(torch.stack([one[name] for one in first]).mean(0), rule)
            for name in names
        }
        second = look("blocks", lambda: Survey(rule=rule, chosen=orders), _sums)
        steps, grid = _about(out, len(shots))
        plan = Plan(
            Identity.of(denoiser, names[0]), grid, steps, rule.size, rule.density, orders,
            {name: packed(_masks([one[name] for one in second], rule.density)) for name in names},
        )  # fmt: skip
        with files.replacing(out / PLAN) as temporary:
            plan.write(temporary)
    return plan


def _scores(work: Survey) -> Parts:
    return {name: torch.stack(seen).mean(0) for name, seen in work.scores.items()}


def _sums(work: Survey) -> Parts:
    """The mean sums of blocks, "groups heads R R", by layer."""
    names = dict.fromkeys(name for name, _ in work.sums)
    return {
        name: torch.stack([
            work.sums[key] / work.counts[key] for key in sorted(work.sums) if key[0] == name
        ])
        for name in names
    }  # fmt: skip


def _masks(sums: Sequence[Tensor], density: float) -> Tensor:
    mean = torch.stack(list(sums)).mean(0)
    return torch.stack([best_blocks(group, density) for group in mean])


def _one(values: set[Any], what: str) -> str:
    if len(values) != 1:
        raise ValueError(
            f"paro: the calibrated layers saw several {what} of tokens or runs in one prompt "
            f"({', '.join(map(str, sorted(values)))}); choose layers that see one"
        )
    (value,) = values
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and calibrate again") from error


def _about(out: Path, shots: int) -> tuple[int, tuple[int, int, int]]:
    """Steps and size of all prompts."""
    found = set()
    for survey in ("orders", "blocks"):
        for number in range(shots):
            with safe_open(out / f"{survey}-{number:03}.safetensors", "pt") as file:
                about = file.metadata()
            found.add((about["steps"], about["grid"]))
    if len(found) != 1:
        raise ValueError("paro: prompts differ in their size or number of steps")
    ((steps, grid),) = found
    frames, rows, columns = (int(n) for n in grid.strip("[]").split(","))
    return int(steps), (frames, rows, columns)
