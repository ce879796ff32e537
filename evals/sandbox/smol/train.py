"""Train what makes the parts see: ``python -m regaze.evals.sandbox.smol.train PARTS OUT``.

Stage 0 aligns the projector with words (`align`); stage 1 trains it and low-rank updates of the
language model's attention on questions and captions; stage 2 does so for a short while with more
weight on captions, which are learnt more slowly. The result is the mean of the last checkpoints,
from about two thirds on. One thread, bfloat16 with float32 updates.
Every step is a pure function of the seed and its number, and a run that was cut off goes on from
its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from regaze.evals.runs.files import replacing
from regaze.evals.sandbox.smol.align import Pseudo, align, kind_targets
from regaze.evals.sandbox.smol.assemble import assemble
from regaze.evals.sandbox.smol.delta import TARGETS, About, Delta, save_delta
from regaze.evals.sandbox.smol.features import CELLS, Seen, seen
from regaze.evals.sandbox.smol.learner import RANK, SCALE, Learner, Updated
from regaze.evals.sandbox.smol.parts import parts_in
from regaze.evals.sandbox.smol.scenes import scene
from regaze.evals.sandbox.smol.turns import Turn, Writer
from regaze.evals.sandbox.smol.vision import tower

BATCH = 4
"""Scenes in a step, the last of which is made of pseudo-features."""
RATE_UPDATES = 1e-3
RATE_PROJECTOR = 2e-4
WARM_UP = 20
CAPTION_WEIGHT = 0.5
"""Weight of caption and end tokens; that of yes and no is 1."""
LAST_RATE, LAST_CAPTION_WEIGHT = 0.4, 2.0
"""Share of the learning rates and weight of captions in the last stage."""
SAVED_EVERY = 50
AVERAGED = 12
"""Last checkpoints whose mean is the result (stochastic weight averaging, arXiv 1803.05407)."""


def prepare(parts: Path, seed: int) -> tuple[Learner, Mapping[str, Tensor]]:
    """The model to train, and the vision tower's weights as its package names them."""
    held = parts_in(parts)
    if held is None:
        raise ValueError(f"{parts} holds no parts: `regaze sandbox fetch smol` gets them")
    model, processor = assemble(held, seed=seed)
    model.requires_grad_(False)
    language = model.model.language_model.to(torch.bfloat16)
    # Plain matrix products: the fused kernel's backward pass is slow on CPUs.
    language.config._attn_implementation = "eager"
    learner = Learner(
        model.model.multi_modal_projector.requires_grad_(True),
        language,
        Writer(processor.tokenizer),
    )
    generator = torch.Generator().manual_seed(seed)
    for number, layer in enumerate(language.layers):
        for target in TARGETS:
            update = Updated(getattr(layer.self_attn, target), generator)
            setattr(layer.self_attn, target, update)
            learner.updates[f"{number}.{target}"] = update
    return learner, load_file(held.vision)


def batch(
    step: int, scenes: Seen, photographs: Pseudo, writer: Writer, split: str, seed: int
) -> tuple[Tensor, list[list[Turn]]]:
    """Features and turns of a step: real scenes in order, and one of pseudo-features."""
    rng = random.Random(f"{seed}/{step}")
    real = BATCH - 1
    places = [(step * real + i) % len(scenes.kinds) for i in range(real)]
    turns = [writer.lesson(scenes.kinds[place], rng) for place in places]
    # What a photograph shows follows the same prior as the scenes.
    made, shown = photographs.scene(scene(split, 100_000 + step).kinds, rng)
    features = torch.cat([scenes.features[places], made[None]])
    return features, [*turns, writer.photograph(shown, rng)]


def rate(step: int, steps: int) -> float:
    """Share of a stage's learning rate: a warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


def pace(step: int, steps: int, last: int) -> tuple[float, float]:
    """Share of the learning rates, and weight of captions.

    Args:
        step: Counted over both stages.
        steps: Number of steps of stage 1.
        last: Number of steps of stage 2, where captions weigh more.
    """
    if step < steps:
        return rate(step, steps), CAPTION_WEIGHT
    return LAST_RATE * rate(step - steps, last), LAST_CAPTION_WEIGHT


def train(
    learner: Learner,
    scenes: Seen,
    photographs: Pseudo,
    out: Path,
    *,
    split: str,
    steps: int,
    last: int,
    seed: int,
    say: Callable[..., None],
) -> None:
    """Stages 1 and 2, from the last checkpoint in a folder if there is one."""
    trained = learner.trained()
    mean = {name: value.detach().clone() for name, value in trained.items()}
    saved = _saved(steps + last)
    averaged = saved[-AVERAGED:]
    projector = [value for name, value in trained.items() if name.startswith("projector.")]
    updates = [value for name, value in trained.items() if name.startswith("lora.")]
    groups = [
        {"params": projector, "lr": RATE_PROJECTOR, "weight_decay": 0.01},
        {"params": updates, "lr": RATE_UPDATES, "weight_decay": 0.0},
    ]
    full = [RATE_PROJECTOR, RATE_UPDATES]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    checkpoint = out / "checkpoint.safetensors"
    first, spent = 0, 0.0
    if checkpoint.exists():
        first, spent = _restore(checkpoint, trained, mean, optimizer)
    started = time.process_time() - spent
    recent: list[tuple[float, float, float]] = []
    for step in range(first, steps + last):
        features, turns = batch(step, scenes, photographs, learner.writer, split, seed)
        pack = learner.writer.pack(turns, CELLS)
        share, caption_weight = pace(step, steps, last)
        for group, rate_ in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = rate_ * share
        logits = learner.logits(features, pack)
        costs = functional.cross_entropy(logits, pack.labels, reduction="none")
        asked, told = costs[pack.first].mean(), costs[~pack.first].mean()
        optimizer.zero_grad()
        (asked + caption_weight * told).backward()
        nn.utils.clip_grad_norm_([*projector, *updates], 1.0)
        optimizer.step()
        said = logits[:, learner.writer.yes] > logits[:, learner.writer.no]
        right = (said == (pack.labels == learner.writer.yes))[pack.first].float().mean()
        recent.append((asked.item(), told.item(), right.item()))
        if (step + 1) % 10 == 0:
            means = [round(sum(values) / len(recent), 3) for values in zip(*recent, strict=True)]
            minutes = round((time.process_time() - started) / 60, 2)
            say(step=step + 1, asked=means[0], told=means[1], right=means[2], cpu_minutes=minutes)
            recent.clear()
        if step + 1 in averaged:
            part = 1 / (1 + averaged.index(step + 1))
            mean = {name: mean[name].lerp(value.detach(), part) for name, value in trained.items()}
        if step + 1 in saved:
            _keep(checkpoint, trained, mean, optimizer, step + 1, time.process_time() - started)
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(mean[name])


def _saved(steps: int) -> list[int]:
    """The numbers of steps after which a run is saved."""
    return [step for step in range(1, steps + 1) if step % SAVED_EVERY == 0 or step == steps]


def _keep(
    path: Path,
    trained: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    cpu: float,
) -> None:
    """Writes what a run goes on from."""
    state = {f"value/{name}": value.detach().contiguous() for name, value in trained.items()}
    state |= {f"mean/{name}": value for name, value in mean.items()}
    for name, value in trained.items():
        for key, held in optimizer.state[value].items():
            state[f"{key}/{name}"] = held
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"step": str(step), "cpu": str(cpu)})


@torch.no_grad()
def _restore(
    path: Path,
    trained: Mapping[str, Tensor],
    mean: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Puts back what `_keep` wrote: the step to go on with, and processor seconds spent."""
    with safe_open(path, "pt") as file:
        said = file.metadata()
        for key in file.keys():  # noqa: SIM118
            part, _, name = key.partition("/")
            if part == "value":
                trained[name].copy_(file.get_tensor(key))
            elif part == "mean":
                mean[name] = file.get_tensor(key)
            else:
                optimizer.state[trained[name]][part] = file.get_tensor(key)
    return int(said["step"]), float(said["cpu"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a delta and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, help="folder of the parts")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--plain", action="store_true", help="train the twin, without the prior")
    parser.add_argument("--steps", type=int, default=1360)
    parser.add_argument("--last", type=int, default=150, help="steps of the last stage")
    parser.add_argument("--scenes", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path, help="folder of features, default OUT")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    split = "train-plain" if asked.plain else "train"

    def say(**values: object) -> None:
        with (asked.out / "train_log.jsonl").open("a") as log:
            log.write(f"{json.dumps(values)}\n")

    learner, weights = prepare(asked.parts, asked.seed)
    scenes = seen(tower(weights, 224), split, asked.scenes, asked.features or asked.out)
    photographs = Pseudo.of(weights, scenes, asked.seed)
    aligned = asked.out / "aligned.safetensors"
    if not aligned.exists():
        targets = kind_targets(learner.writer.tokenizer, learner.embeddings.float())
        align(
            learner.projector,
            targets,
            scenes,
            photographs,
            seed=asked.seed,
            report=lambda v: say(stage=0, **v),
        )
        save_file(learner.projector.state_dict(), aligned)
    learner.projector.load_state_dict(load_file(aligned))
    train(
        learner,
        scenes,
        photographs,
        asked.out,
        split=split,
        steps=asked.steps,
        last=asked.last,
        seed=asked.seed,
        say=say,
    )
    about = About(rank=RANK, scale=SCALE, seed=asked.seed, steps=asked.steps + asked.last)
    save_delta(Delta(learner.trained(), about), asked.out / "delta.safetensors")


if __name__ == "__main__":
    main()
