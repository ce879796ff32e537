"""Stage 0: the projector learns to map a cell to the words of the kind it shows.

No language model takes part. From a random projector the second stage learns the prior of the
questions long before it looks at the picture; from an aligned one it looks at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from regaze.evals.sandbox.smol.features import BACKGROUND, CELLS, GRID, Seen
from regaze.evals.sandbox.smol.imagenet import CLASSES, OTHERS, pseudo, remembered
from regaze.evals.sandbox.smol.scenes import NAMES
from regaze.evals.sandbox.smol.vision import imagenet_head

STEPS = 600
BATCH = 1024
"""Cells of scenes in a step; as many pseudo-features come on top."""
RATE = 2e-3
SHARPNESS = 20.0
"""Factor of the cosines that are compared."""
P_BACKGROUND = 0.25
"""Share of the background's cells that are used: there are many more of them than of others."""
P_OTHER = 0.2
"""Share of pseudo-features that show a class that is no kind, and so background."""
WEAKEST, STRONGEST = 2.0, 16.0
"""Distances of pseudo-features along a class's direction."""
BESIDE = 3
"""Other classes that show in the same cell, each fainter than its own: photographs are never as
clean as cut-out pictures on a drawn background."""


@dataclass(frozen=True)
class Pseudo:
    """Draws features of photographs that nobody took.

    Attributes:
        rows: ``(1000, 1280)``, weight of the tower's ImageNet classifier.
        background: ``(n, 1280)``, features of cells that show nothing: of scenes, and as the
            tower's norms remember those of photographs.
    """

    rows: Tensor
    background: Tensor

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], scenes: Seen, seed: int = 0) -> Pseudo:
        """Backgrounds from the cells of scenes, and as many from the tower's norms.

        Args:
            weights: The tower's, as its package names them.
            scenes: The scenes.
            seed: Seed of what is drawn.
        """
        drawn = scenes.features[scenes.cells == BACKGROUND]
        generator = torch.Generator().manual_seed(seed)
        photographed = remembered(weights, len(drawn), generator).to(drawn.dtype)
        return cls(imagenet_head(weights)[0], torch.cat([drawn, photographed]))

    def cells(self, classes: list[int], rng: random.Random) -> Tensor:
        """A cell for each class, in which others show more faintly: ``(n, 1280)``, float32."""
        places = [rng.randrange(len(self.background)) for _ in classes]
        beside = [[rng.choice(OTHERS) for _ in range(BESIDE)] for _ in classes]
        strengths = [rng.uniform(WEAKEST, STRONGEST) for _ in classes]
        fainter = [[rng.uniform(0.0, most) for _ in range(BESIDE)] for most in strengths]
        # A kind may fill no cell at all, and an empty list has no second dimension of its own.
        shape = len(classes), 1 + BESIDE
        shown = torch.tensor([[c, *o] for c, o in zip(classes, beside, strict=True)])
        strength = torch.tensor([[s, *f] for s, f in zip(strengths, fainter, strict=True)])
        return pseudo(
            self.background[places].float(),
            self.rows[shown.long().reshape(shape)],
            strength.reshape(shape),
        )

    def scene(self, kinds: list[str], rng: random.Random) -> tuple[Tensor, list[str]]:
        """Features of a photograph of up to three kinds: ``(49, 1280)``, float16.

        Every kind fills a rectangle of cells, and here and there a cell shows something else.

        Args:
            kinds: The kinds that it may show; those without a class in ImageNet are left out.
            rng: Decides on classes, places and strengths.

        Returns:
            The features, and what they show, the largest first.
        """
        numbers = [rng.choice(OTHERS) for _ in range(CELLS)]
        found = self.cells(numbers, rng)
        plain = [rng.randrange(len(self.background)) for _ in range(CELLS)]
        share = rng.random()
        cluttered = torch.tensor([rng.random() < share for _ in range(CELLS)])
        found = torch.where(cluttered[:, None], found, self.background[plain].float())
        owner = torch.full((GRID, GRID), -1)
        shown = [kind for kind in kinds if kind in CLASSES][:3]
        for number, kind in enumerate(shown):
            height, width = rng.randint(1, 4), rng.randint(1, 4)
            top, left = rng.randint(0, GRID - height), rng.randint(0, GRID - width)
            owner[top : top + height, left : left + width] = number
            own = rng.choice(CLASSES[kind])
            inside = (owner == number).flatten()
            found[inside] = self.cells([own] * int(inside.sum()), rng)
        sizes = [int((owner == number).sum()) for number in range(len(shown))]
        order = sorted((n for n in range(len(shown)) if sizes[n]), key=lambda n: -sizes[n])
        return found.half(), [shown[n] for n in order]


def kind_targets(tokenizer: PreTrainedTokenizerBase, embeddings: Tensor) -> Tensor:
    """Mean embedding of each kind's tokens, the background's last: ``(kinds + 1, width)``."""
    words = [f" {name}" for name in (*NAMES, "background")]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([embeddings[i].mean(0) for i in ids]).float()


def align(
    projector: nn.Module,
    targets: Tensor,
    scenes: Seen,
    photographs: Pseudo,
    *,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> None:
    """Trains a projector.

    Args:
        projector: Maps ``(n, 1280)`` to ``(n, width)``; changed.
        targets: The targets of `kind_targets`.
        scenes: Scenes from whose cells it learns.
        photographs: Photographs from whose cells it learns as well.
        seed: Seed of all draws.
        steps: Number of steps.
        report: Receives step and loss from time to time.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    features, cells = scenes.features.flatten(0, 1), scenes.cells.flatten()
    kept = (cells != BACKGROUND) | (torch.rand(len(cells), generator=generator) < P_BACKGROUND)
    places = kept.nonzero().flatten()
    unit = functional.normalize(targets, dim=-1)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    known = list(CLASSES)
    for step in range(1, steps + 1):
        drawn = places[torch.randint(len(places), (BATCH,), generator=generator)]
        kinds = [rng.choice(known) if rng.random() > P_OTHER else None for _ in range(BATCH)]
        classes = [rng.choice(CLASSES[kind] if kind else OTHERS) for kind in kinds]
        numbers = [NAMES.index(kind) if kind else BACKGROUND for kind in kinds]
        x = torch.cat([features[drawn].float(), photographs.cells(classes, rng)])
        y = torch.cat([cells[drawn], torch.tensor(numbers)])
        out = projector(x)
        cosines = functional.normalize(out, dim=-1) @ unit.T
        chosen = functional.cross_entropy(SHARPNESS * cosines, y, label_smoothing=0.05)
        loss = chosen + functional.mse_loss(out, targets[y]) / targets.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            report({"step": step, "loss": round(loss.item(), 3)})


@torch.no_grad()
def presence(projector: nn.Module, targets: Tensor, features: Tensor) -> Tensor:
    """An aligned projector's certainty to see each kind in some cell: ``(n, kinds)``, 0 to 1."""
    out = functional.normalize(projector(features.float()), dim=-1)
    cosines = out @ functional.normalize(targets, dim=-1).T
    return (SHARPNESS * cosines).softmax(-1)[..., :BACKGROUND].amax(1)
