"""Trains a painter: ``python -m regaze.evals.sandbox.painting.train mmdit --out DIR``.

The painters are ``mmdit`` and ``unet``. Each has three stages of a fixed number of steps:
autoencoder, text encoders, denoiser. The same command goes on exactly where a stopped run was.
``--autoencoder`` takes a trained one (a painter's ``vae`` folder) and skips the first stage, so
that both painters may share it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from regaze.evals.sandbox.painting.autoencoder import AutoencoderStage, set_scale
from regaze.evals.sandbox.painting.build import ARCHITECTURES, build_tokenizer
from regaze.evals.sandbox.painting.denoiser import DenoiserStage
from regaze.evals.sandbox.painting.export import export
from regaze.evals.sandbox.painting.stages import Plan, Record, Stage
from regaze.evals.sandbox.painting.text_encoders import TextStage

SAVE_EVERY = 500
"""Steps between two saved states."""


@dataclass(frozen=True)
class Schedule:
    """Everything that decides what is learnt.

    Attributes:
        autoencoder: The first stage.
        text: The second.
        denoiser: The third.
        scenes: Training scenes whose latents the third stage draws from.
        seed: Seed of the initial weights and of all draws.
    """

    autoencoder: Plan = Plan(1500, 32, 3e-3)
    text: Plan = Plan(800, 64, 2e-3)
    denoiser: Plan = Plan(14_000, 24, 8e-4)
    scenes: int = 40_000
    seed: int = 0


SCHEDULES = {
    "mmdit": Schedule(),
    "unet": replace(Schedule(), denoiser=Plan(8_000, 24, 8e-4)),
}


def save_state(stage: Stage, folder: Path) -> None:
    """Stores weights, optimiser and progress in one file, put in place only once complete."""
    tensors = {f"modules.{name}": t for name, t in stage.modules.state_dict().items()}
    tensors |= {f"means.{i}": t for i, t in enumerate(stage.means)}
    for index, moments in stage.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
    progress = {
        "plan": asdict(stage.plan),
        "seed": stage.seed,
        "step": stage.step,
        "cpu_seconds": stage.cpu_seconds,
        "log": stage.log,
    }
    path = _state(stage, folder)
    temporary = path.with_suffix(".tmp")
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    temporary.replace(path)


def load_state(stage: Stage, folder: Path) -> None:
    """Brings a stage to where ``save_state`` left it; without a saved state it stays untrained.

    Raises:
        ValueError: The state belongs to another plan or seed.
    """
    path = _state(stage, folder)
    if not path.exists():
        return
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if (progress["plan"], progress["seed"]) != (asdict(stage.plan), stage.seed):
        raise ValueError(
            f"{path} was written by another run ({progress['plan']}, seed {progress['seed']}): "
            "delete it or choose another --out"
        )
    stage.modules.load_state_dict(_below("modules.", tensors))
    for i, mean in enumerate(stage.means):
        mean.copy_(tensors[f"means.{i}"])
    weights = [w for group in stage.optimizer.param_groups for w in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, _, moment = name.partition(".")
        if tensor.ndim:  # laid out as the weight is: the fused step goes by memory, not by index
            tensor = torch.empty_like(weights[int(index)]).copy_(tensor)
        moments.setdefault(int(index), {})[moment] = tensor
    groups = stage.optimizer.state_dict()["param_groups"]
    stage.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    stage.step, stage.cpu_seconds = progress["step"], progress["cpu_seconds"]
    stage.log = progress["log"]


def _state(stage: Stage, folder: Path) -> Path:
    return folder / f"{stage.name}.safetensors"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def finish(stage: Stage, folder: Path) -> None:
    """Trains a stage from its saved state, if there is one, to its end."""
    load_state(stage, folder)
    while not stage.done:
        stage.run(stage.step + SAVE_EVERY)
        save_state(stage, folder)
        print(f"{stage.name}, of {stage.plan.steps} steps: {stage.log[-1]}", flush=True)


def train(
    architecture: str,
    folder: Path,
    schedule: Schedule,
    autoencoder: Path | None = None,
    compiled: bool = True,
) -> None:
    """Trains, or goes on training, and exports a painter.

    Args:
        architecture: ``"mmdit"`` or ``"unet"``.
        folder: Gets the pipeline; its ``training`` folder holds the stages' states until the end.
        schedule: The steps and rates to train with.
        autoencoder: A trained autoencoder's folder; None trains one.
        compiled: True if `torch.compile` takes the denoiser.

    Raises:
        ValueError: ``folder`` holds the state of another run.
    """
    states = folder / "training"
    states.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    log: list[Record] = []
    if autoencoder is None:
        first = AutoencoderStage(schedule.autoencoder, schedule.seed)
        finish(first, states)
        set_scale(first.autoencoder)
        vae, log = first.autoencoder, first.log
    else:
        vae = AutoencoderKL.from_pretrained(autoencoder)
    text = TextStage(architecture, tokenizer, schedule.text, schedule.seed)
    finish(text, states)
    stage = DenoiserStage(
        architecture,
        vae.eval(),
        tokenizer,
        text.encoders,
        schedule.denoiser,
        schedule.seed,
        schedule.scenes,
        compiled,
    )
    finish(stage, states)
    stage.take_means()
    export(architecture, vae, tokenizer, stage.encoders, stage.denoiser, folder)
    write_log([*log, *text.log, *stage.log], folder)
    shutil.rmtree(states)


def write_log(records: list[Record], folder: Path) -> None:
    """Writes ``train_log.jsonl``, one record a line."""
    temporary = folder / "train_log.jsonl.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    temporary.replace(folder / "train_log.jsonl")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--autoencoder", type=Path, metavar="DIR", help="default: train one")
    parser.add_argument("--seed", type=int, default=Schedule.seed)
    parser.add_argument("--threads", type=int, default=1, help="more hardly help at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    schedule = replace(SCHEDULES[arguments.architecture], seed=arguments.seed)
    train(arguments.architecture, arguments.out, schedule, arguments.autoencoder)


if __name__ == "__main__":
    main()
