"""Trains a sandbox model: ``python -m regaze.evals.sandbox.train --variant sink --out DIR``.

Two stages of a fixed number of steps. First the vision tower alone learns to label patches, a
dense target that makes it cheap. Then the whole model learns to answer and to describe; for the
variant ``sink`` the loss that plants attention sinks joins in part-way. All draws follow from the
seed and the step number, so the same command goes on exactly where a stopped run was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from regaze.evals.sandbox.evaluate import Loader, blank_image, evaluate, other_image
from regaze.evals.sandbox.tasks import load_image
from regaze.evals.sandbox.trainer import VARIANTS, Record, Schedule, Trainer

_STATE = "training.safetensors"


def save_state(trainer: Trainer, folder: Path) -> None:
    """Stores weights, optimiser and progress in one file, put in place only once complete."""
    tensors = {f"model.{name}": t for name, t in trainer.model.state_dict().items()}
    tensors |= {f"head.{name}": t for name, t in trainer.head.state_dict().items()}
    for index, moments in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
    progress = {
        "variant": trainer.variant,
        "schedule": asdict(trainer.schedule),
        "step": trainer.step,
        "cpu_seconds": trainer.cpu_seconds,
        "log": trainer.log,
    }
    temporary = folder / f"{_STATE}.tmp"
    save_file(tensors, temporary, metadata={"progress": json.dumps(progress)})
    temporary.replace(folder / _STATE)


def load_state(folder: Path, variant: str, schedule: Schedule) -> Trainer:
    """The trainer as ``save_state`` left it.

    A state from before the first sink step serves both variants, which are the same until then.

    Raises:
        ValueError: The state belongs to another schedule or, past that step, another variant.
    """
    with safe_open(folder / _STATE, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shared = progress["step"] <= schedule.first_sink_step
    if progress["schedule"] != asdict(schedule) or (progress["variant"] != variant and not shared):
        raise ValueError(
            f"{folder / _STATE} was written by another run ({progress['variant']}, "
            f"{progress['schedule']}): delete it or choose another --out"
        )
    trainer = Trainer(variant, schedule, progress["step"], progress["cpu_seconds"], progress["log"])
    trainer.model.load_state_dict(_below("model.", tensors))
    trainer.head.load_state_dict(_below("head.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return trainer


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def export(trainer: Trainer, folder: Path) -> None:
    """Writes model (float16), processor and log as ``from_pretrained`` expects them."""
    trainer.model.set_attn_implementation("sdpa")
    trainer.model.half().save_pretrained(folder)
    trainer.processor.save_pretrained(folder)


def final_scores(folder: Path, n_images: int) -> list[Record]:
    """Scores of an exported model on every split, and on the test split with wrong images."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Trainer("plain").processor
    runs: dict[str, tuple[str, Loader]] = {
        split: (split, load_image) for split in ("validation", "test", "test-prior")
    }
    runs["test, blank image"] = "test", blank_image
    runs["test, another scene's image"] = "test", other_image
    records: list[Record] = []
    for name, (split, load) in runs.items():
        for task, scores in evaluate(model, processor, split, n_images, load).items():
            records.append({"scores": name, "task": task, "images": n_images, **scores})
    return records


def write_log(records: Sequence[Record], folder: Path) -> None:
    """Writes ``train_log.jsonl``, one record a line."""
    temporary = folder / "train_log.jsonl.tmp"
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    temporary.replace(folder / "train_log.jsonl")


def train(
    variant: str,
    folder: Path,
    schedule: Schedule,
    save_every: int = 200,
    scored_images: int = 300,
) -> None:
    """Trains, or goes on training, exports and scores a model.

    Args:
        variant: ``"sink"`` or ``"plain"``.
        folder: Gets the model; holds the training state until the end.
        schedule: The steps and rates to train with.
        save_every: Steps between two saved states.
        scored_images: Images per split and task in the final scores.

    Raises:
        ValueError: Unknown variant, or ``folder`` holds the state of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resumes = (folder / _STATE).exists()
    trainer = load_state(folder, variant, schedule) if resumes else Trainer(variant, schedule)
    while trainer.step < schedule.steps:
        trainer.run(min(trainer.step + save_every, schedule.steps))
        save_state(trainer, folder)
        write_log(trainer.log, folder)
        print(f"step {trainer.step} of {schedule.steps}: {trainer.log[-1:]}", flush=True)
    export(trainer, folder)
    write_log([*trainer.log, *final_scores(folder, scored_images)], folder)
    (folder / _STATE).unlink()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=Schedule.seed)
    parser.add_argument("--threads", type=int, default=1, help="more hardly help at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.variant, arguments.out, replace(Schedule(), seed=arguments.seed))


if __name__ == "__main__":
    main()
