"""Yes/no questions about noise, put to a tiny model, for tests of what its heads do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny import Tiny, tiny

from regaze.evals.analysis.asked import Subject
from regaze.evals.asking.generation import Answerer
from regaze.evals.task import Counts, Item, QuestionTask, Sums

SHORT, LONG = "is there a dog?", "describe this picture in detail, word for word."


class YesNo(QuestionTask):
    """Three questions about two pictures of different sizes."""

    name, profile, max_new_tokens, yes_no, data_hash = "noise", "noise", 3, True, "0" * 64
    directions: Mapping[str, int] = {}

    def __init__(self, model: Tiny) -> None:
        self.model = model
        self.items: Sequence[Item] = [
            Item("a", "0", SHORT, target="yes"),
            Item("b", "1", LONG, target="no"),
            Item("c", "1", "a dog is there?", target="no"),
        ]

    def load_image(self, item: Item) -> Image.Image:
        number = int(item.image or 0)
        return self.model.picture(number, (40 + 8 * number, 28))

    def counts(self, item: Item, text: str) -> Counts:
        return {"correct": 1.0}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        return {}


def subject(family: str, batch_size: int = 2, attention: str = "sdpa") -> Subject:
    """A tiny model and the questions."""
    model = tiny(family, attn_implementation=attention)
    task = YesNo(model)
    return Subject(Answerer(model.model, model.processor, 3), task, task.items, batch_size)
