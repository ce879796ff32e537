"""The three stages that make a painter: autoencoder, text encoders, denoiser; `train` runs them.

Every draw follows from the seed, the stage and the step number, so a stage that is stored and
loaded again goes on exactly as if it had not been stopped.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regaze.evals.sandbox.painting.scenes import Scene, scene

LOG_EVERY = 100
"""Steps that one record of the log sums up."""

_AVERAGING = 0.998

Record = dict[str, float | str]


@dataclass(frozen=True)
class Plan:
    """Length and rate of a stage's training.

    Attributes:
        steps: Optimiser steps.
        batch: Pictures or prompts per step.
        rate: Highest learning rate.
        warmup: Steps in which the rate rises.
        decay: Share of the steps in which it falls to zero, on a line, at the end.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    decay: float = 0.35

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, falling)


class Stage(ABC):
    """Some modules in training.

    Attributes:
        name: The stage's name in logs and files.
        modules: The modules that it trains, and those it needs for that alone.
        step: Steps done.
        cpu_seconds: Processor time spent so far, over all runs.
        log: One record per ``LOG_EVERY`` steps.
        means: Moving averages of all weights, in their order; only some stages keep any.
    """

    name: str

    def __init__(self, modules: nn.ModuleDict, plan: Plan, seed: int) -> None:
        self.modules, self.plan, self.seed = modules, plan, seed
        self.step, self.cpu_seconds = 0, 0.0
        self.log: list[Record] = []
        self.means: list[Tensor] = []
        self.optimizer = torch.optim.AdamW(
            self.groups(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )

    def groups(self) -> list[dict[str, object]]:
        """The optimiser's groups; ``share`` scales the learning rate."""
        return [{"params": list(self.modules.parameters()), "share": 1.0}]

    @abstractmethod
    def loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch's losses; the first is the one to lower, the others are logged.

        Args:
            generator: The only source of randomness.
        """

    def keep_means(self) -> None:
        """Keeps moving averages from here on."""
        self.means = [p.detach().clone() for p in self.modules.parameters()]

    def take_means(self) -> None:
        """Replaces the weights by their moving averages: those paint better."""
        with torch.no_grad():
            for weight, mean in zip(self.modules.parameters(), self.means, strict=True):
                weight.copy_(mean)

    def _update_means(self) -> None:
        """Updates the moving averages, faster at first."""
        keep = min(_AVERAGING, (1 + self.step) / (10 + self.step))
        now = [p.detach() for p in self.modules.parameters()]
        torch._foreach_lerp_(self.means, now, 1 - keep)

    @property
    def done(self) -> bool:
        """True if all steps are done."""
        return self.step >= self.plan.steps

    def run(self, until: int) -> None:
        """Trains up to a step; a later call goes on."""
        recent: list[dict[str, float]] = []
        self.modules.train()
        while self.step < min(until, self.plan.steps):
            started = time.process_time()
            recent.append(self._train_step())
            self.cpu_seconds += time.process_time() - started
            if self.step % LOG_EVERY == 0 or self.done:
                means = {k: sum(r[k] for r in recent) / len(recent) for k in recent[0]}
                minutes = round(self.cpu_seconds / 60, 2)
                done: Record = {"stage": self.name, "step": self.step, "cpu_minutes": minutes}
                self.log.append(done | {k: round(v, 5) for k, v in means.items()})
                recent.clear()

    def _train_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step) * group["share"]
        seed = random.Random(f"{self.seed}/{self.name}/{self.step}").getrandbits(63)
        losses = self.loss(torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad()
        next(iter(losses.values())).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.means:
            self._update_means()
        return {name: value.item() for name, value in losses.items()}


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures as the autoencoder takes them, ``(N, 3, 32, 32)`` in -1 to 1."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def scenes_at(step: int, batch: int) -> list[Scene]:
    """The training scenes of a step; none is drawn twice within a stage."""
    return [scene("train", step * batch + i) for i in range(batch)]
