"""Prompts and seeds as a task: its answers are the stored scores of the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.render import Shot
from regaze.evals.pictures.scorers import IMAGES, Scorer
from regaze.evals.runs import files, store
from regaze.evals.task import Counts, Item, Sums, Task

NAME = "images"
FOLDER = "images"


class Pictures(Task):
    """One item per prompt and seed; prompts are what statistics resample.

    Where a run stores an answer, a picture stores the name of its file. Scores are computed apart
    and put in its place as JSON, see `regaze.evals.pictures.study`; so this class never sees a
    pixel, and all statistics are those of every other task.

    Args:
        prompts: The prompts to paint.
        seeds: Seeds of the noise; every prompt is painted with each.
        scorers: Scorers whose scores to read.

    Raises:
        ValueError: Two scorers give a metric of the same name.
    """

    name = NAME
    units = "prompts"

    def __init__(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], scorers: Sequence[Scorer] = ()
    ) -> None:
        self.scorers = tuple(scorers)
        self.profile = "+".join(scorer.label for scorer in scorers) or "unscored"
        self.items = [
            # The same prompt under two ids is one cluster.
            Item(f"{one.id}/{seed}", None, one.text, one.group, None, (), one.text)
            for one in prompts
            for seed in seeds
        ]
        self.seeds = tuple(seeds)
        self._prompt_of = {f"{one.id}/{seed}": one for one in prompts for seed in seeds}
        self._files = store.distinct_names(item.id for item in self.items)
        self._references = store.distinct_names(one.id for one in prompts)
        metrics = [metric for scorer in scorers for metric in scorer.directions]
        if twice := sorted({metric for metric in metrics if metrics.count(metric) > 1}):
            raise ValueError(f"two scorers give {', '.join(twice)}: score with one at a time")
        self.headline = tuple(m for scorer in scorers for m in scorer.headline or scorer.directions)
        self.absolute = tuple(metric for scorer in scorers for metric in scorer.absolute)

    def shot(self, item: Item) -> Shot:
        """The picture to paint for an item."""
        prompt = self._prompt_of[item.id]
        seed = int(item.id.rpartition("/")[2])
        return Shot(prompt.asked or item.prompt, seed, prompt.negative)

    def file(self, item: Item) -> str:
        """A picture's file in the folder of its condition."""
        return f"{FOLDER}/{self._files[item.id]}.png"

    def references(self, item: Item) -> list[str]:
        """The names that a picture to compare with may have: one per picture, or one per prompt."""
        return [
            f"{self._files[item.id]}.png",
            f"{self._references[self._prompt_of[item.id].id]}.png",
        ]

    def picture(self, item: Item, folder: Path) -> Image.Image:
        """The picture that a condition painted.

        Raises:
            OSError: It is gone or damaged.
        """
        return open_picture(folder / self.file(item))

    def told(self, item: Item, text: str) -> str:
        """Every scorer's words about a picture."""
        counts = self.counts(item, text)
        return "; ".join(scorer.told(counts) for scorer in self.scorers)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the prompts and seeds."""

        def row(item: Item) -> tuple[str, ...]:
            prompt = self._prompt_of[item.id]
            more = (prompt.asked, prompt.negative) if prompt.asked or prompt.negative else ()
            return item.id, item.prompt, item.group, *more

        return files.digest([row(item) for item in self.items])

    def counts(self, item: Item, text: str) -> Counts:
        """The stored counts of a picture; where a scorer knows right and wrong, also that."""
        counts: dict[str, float] = {
            key: float("nan") if value is None else value for key, value in json.loads(text).items()
        }
        return {IMAGES: 1.0, "correct": counts.get("right", 0.0), **counts}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Every scorer's metrics."""
        return {name: v for scorer in self.scorers for name, v in scorer.metrics(sums).items()}

    @property
    def directions(self) -> Mapping[str, int]:
        """Every scorer's directions."""
        return {name: way for scorer in self.scorers for name, way in scorer.directions.items()}


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB.

    Raises:
        OSError: It is gone or damaged.
    """
    with Image.open(path) as image:
        return image.convert("RGB")
