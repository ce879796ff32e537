"""Trains what a painter needs for clips: ``python -m regaze.evals.sandbox.video.train --out DIR``.

That is the ControlNet; with ``motion`` before ``--out`` the motion modules. The same command goes
on exactly where a stopped run was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ControlNetModel, DiffusionPipeline, MotionAdapter

from regaze.evals.sandbox.painting import painter_path
from regaze.evals.sandbox.painting.stages import Plan, Stage
from regaze.evals.sandbox.painting.train import finish, write_log
from regaze.evals.sandbox.video.controlnet import ControlNetStage
from regaze.evals.sandbox.video.motion import MotionStage, adapter_of

_S = TypeVar("_S", bound=Stage)


@dataclass(frozen=True)
class Schedule:
    """Everything that decides what is learnt.

    Attributes:
        plan: Steps, batch and rate.
        scenes: Training scenes, or clips, to draw from.
        seed: Seed of the initial weights and of all draws.
    """

    plan: Plan = Plan(4_000, 24, 5e-4)
    scenes: int = 20_000
    seed: int = 0


SCHEDULES = {"controlnet": Schedule(), "motion": Schedule(Plan(1_500, 4, 1e-3), 3_000)}


def train(folder: Path, schedule: Schedule, compiled: bool = True) -> None:
    """Trains, or goes on training, and exports the ControlNet.

    Args:
        folder: Gets the model; its ``training`` folder holds the state until the end.
        schedule: The steps and rates to train with.
        compiled: True if `torch.compile` takes the U-Net with its ControlNet.

    Raises:
        ValueError: ``folder`` holds the state of another run.
    """
    _train(ControlNetStage, lambda stage: stage.controlnet, folder, schedule, compiled)


def train_motion(folder: Path, schedule: Schedule, compiled: bool = False) -> None:
    """Trains, or goes on training, and exports the motion modules.

    Args:
        folder: Gets the model; its ``training`` folder holds the state until the end.
        schedule: The steps and rates to train with.
        compiled: True if `torch.compile` takes the U-Net, which it gains little by.

    Raises:
        ValueError: ``folder`` holds the state of another run.
    """
    _train(MotionStage, lambda stage: adapter_of(stage.unet), folder, schedule, compiled)


def _train(
    kind: Callable[[Any, Plan, int, int, bool], _S],
    model_of: Callable[[_S], ControlNetModel | MotionAdapter],
    folder: Path,
    schedule: Schedule,
    compiled: bool,
) -> None:
    states = folder / "training"
    states.mkdir(parents=True, exist_ok=True)
    painter = DiffusionPipeline.from_pretrained(painter_path("painter-unet"))
    stage = kind(painter, schedule.plan, schedule.seed, schedule.scenes, compiled)
    finish(stage, states)
    stage.take_means()
    export(model_of(stage), folder)
    write_log(stage.log, folder)
    shutil.rmtree(states)


def export(model: ControlNetModel | MotionAdapter, folder: Path) -> None:
    """Writes the weights in float16; ``from_pretrained(folder)`` gives float32."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)  # a folder of this machine
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("part", choices=SCHEDULES, nargs="?", default="controlnet")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, help="default: those of the shipped model")
    parser.add_argument("--seed", type=int, default=Schedule.seed)
    parser.add_argument("--threads", type=int, default=1, help="more hardly help at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    usual = SCHEDULES[arguments.part]
    plan = replace(usual.plan, steps=arguments.steps or usual.plan.steps)
    schedule = replace(usual, plan=plan, seed=arguments.seed)
    (train if arguments.part == "controlnet" else train_motion)(arguments.out, schedule)


if __name__ == "__main__":
    main()
