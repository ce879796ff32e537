"""Attention maps of many items at a time are those of each item by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy import ToyTask, shared_toy_model

from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import load
from regaze.evals.reports import heats
from regaze.evals.reports.heats import Heat, Heats
from regaze.evals.sandbox.tasks import load_image
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.hooks.capture import capture
from regaze.interventions import CARVE, VAF, Intervention

DESCRIBE = "Describe the image."
CAPTIONS = [Item(str(n), f"test/{n:05}", DESCRIBE) for n in range(4)]
EDITED = VAF(enhance=1.6, suppress=0.4, layers=(2, 3))


class Captions(ToyTask):
    def load_image(self, item: Item) -> Image.Image:
        self.loads.append(str(item.image))
        return load_image(str(item.image))


@pytest.fixture(autouse=True)
def maps_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heats, "heat_layers", lambda maps: maps)


def alone(answerer: Answerer, item: Item, *specs: Intervention) -> tuple[Heat, int]:
    """One item's map and the length of its answer, without a batch."""
    model, processor = answerer.model, answerer.processor
    with attach(model, *specs, processor=processor), capture(model) as seen:
        (answer,) = answerer([item.prompt], [load_image(str(item.image))])
    return seen.heat(), answer.n_new_tokens


def test_a_batch_of_answers_of_several_lengths() -> None:
    loaded = load("sandbox")
    answerer = Answerer(loaded.model, loaded.processor, 40)
    found: Any = Heats(Captions(), answerer).layers(CAPTIONS, [EDITED])
    lengths = set()
    for item in CAPTIONS:
        for name, specs in (("before", ()), ("after", (EDITED,))):
            expected, length = alone(answerer, item, *specs)
            np.testing.assert_allclose(found[item.id][name], expected, rtol=2e-3, atol=1e-5)
            lengths.add(length)
    assert len(lengths) > 1
    assert not np.allclose(found["0"]["before"], found["0"]["after"], rtol=2e-3)


def test_what_has_no_map_is_left_out_and_the_plain_model_is_asked_once() -> None:
    task, answerer = Captions(), Answerer(*shared_toy_model(), 3)
    made = Heats(task, answerer)
    items = [
        CAPTIONS[0],
        Item("none", None, DESCRIBE, cluster="none"),
        Item("chosen", "test/00001", DESCRIBE, choices=("yes", "no")),
    ]
    assert set(made.layers(items, [EDITED])) == {"0"}
    assert made.layers(items, [CARVE()]) == {}
    assert task.loads == ["test/00000"] * 2
    made.layers(items, [EDITED])
    assert len(task.loads) == 3
