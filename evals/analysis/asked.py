"""A benchmark's items as batches of model inputs, to measure on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from regaze.evals.asking.batching import by_image
from regaze.evals.asking.generation import Answerer
from regaze.evals.task import Item, QuestionTask
from regaze.hooks.host import Host, find_host


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the model together, left-padded, each with its picture."""

    items: Sequence[Item]
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model and the questions that it is measured on.

    Attributes:
        answerer: The model.
        task: The benchmark.
        items: The benchmark's items that are asked; each has an image.
        batch_size: Prompts at once.
    """

    answerer: Answerer
    task: QuestionTask
    items: Sequence[Item]
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("there are no items to measure on")
        for item in self.items:
            if item.image is None:
                raise ValueError(
                    f"{self.task.name} asks {item.id} about no image, and heads are measured on "
                    "prompts with one"
                )

    @property
    def model(self) -> Any:
        """The model."""
        return self.answerer.model

    @property
    def host(self) -> Host:
        """Facts about it."""
        return find_host(self.answerer.model, self.answerer.processor)

    def image(self, item: Item) -> Image.Image:
        """An item's image."""
        return self.task.load_image(item)

    def batches(self) -> Iterator[Batch]:
        """The items in order."""
        for start in range(0, len(self.items), self.batch_size):
            items = self.items[start : start + self.batch_size]
            prompts = [item.prompt for item in items]
            yield Batch(items, self.answerer.encode(prompts, [self.image(one) for one in items]))

    @torch.inference_mode()
    def read(self, batch: Batch) -> Any:
        """Run the model on the prompts; logits of the last row alone where it can do that."""
        names = inspect.signature(self.model.forward).parameters
        less = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        # Some processors bring what a loss would need.
        given = {name: value for name, value in batch.inputs.items() if name != "labels"}
        return self.model(**given, **less)


def pick(items: Sequence[Item], limit: int) -> list[Item]:
    """So many items about as many different images as can be, in their order.

    The first question about the first image, the second about the second, and so on; then the next
    of each. So kinds of questions that take turns (POPE's yes and no) are all there.
    """
    groups = list(by_image(items))
    order = [
        (turn, number, group[(number + turn) % len(group)].id)
        for number, group in enumerate(groups)
        for turn in range(len(group))
    ]
    chosen = {key for _, _, key in sorted(order)[:limit]}
    return [item for item in items if item.id in chosen]
