"""A small benchmark and a model with random weights, for tests of everything around a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from regaze.evals.asking import runner
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.results import RunResult
from regaze.evals.sandbox.build import build_model, build_processor
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, QuestionTask, Sums

TOY_IDENTITY = {"name": "toy", "weights_sha256": "toy"}
QUESTIONS = ("Is there a red star?", "Describe the image.", "Is there a blue ring in the image?")


class ToyTask(QuestionTask):
    """Three questions about each image, in two groups; right is an answer that has its word.

    Images named in ``missing`` can't be read.
    """

    name = "toy"
    profile = "toy/plain"
    max_new_tokens = 5
    data_hash = "0" * 64
    directions: Mapping[str, int] = {"accuracy": 1, "yes_ratio": 0}

    def __init__(self, images: int = 5, missing: Sequence[str] = ()) -> None:
        self.missing = missing
        self.loads: list[str] = []
        self.items: Sequence[Item] = [
            Item(f"{group}/{image}-{number}", f"image {image}", question, group, target="star")
            for group in ("easy", "hard")
            for image in range(images)
            for number, question in enumerate(QUESTIONS)
        ]

    def load_image(self, item: Item) -> Image.Image:
        self.loads.append(str(item.image))
        if item.image in self.missing:
            raise FileNotFoundError(f"no image file {item.image}.png")
        seed = int(str(item.image).removeprefix("image "))
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)

    def counts(self, item: Item, text: str) -> Counts:
        words = text.split()
        return {"correct": float(item.target in words), "yes": float("no" in words), "n": 1.0}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        return {
            "accuracy": ratio(sums["correct"], sums["n"]),
            "yes_ratio": ratio(sums["yes"], sums["n"]),
        }


def toy_model() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A random LLaVA whose answers depend on what it is asked and shown."""
    model = build_model(seed=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model, build_processor()


@cache
def shared_toy_model() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """`toy_model` for tests that leave it as it is."""
    return toy_model()


def run_toy(out: Path, *conditions: str, task: ToyTask | None = None, **options: Any) -> RunResult:
    """Run conditions on it, in batches of 4 unless told otherwise."""
    settings = {"batch_size": 4, "identity": TOY_IDENTITY, **options}
    parsed = [Condition.parse(text) for text in conditions]
    return runner.run(task or ToyTask(), *shared_toy_model(), parsed, out=out, **settings)


def save_toy_model(folder: Path) -> Path:
    """The same as a folder that ``from_pretrained`` loads."""
    model, processor = toy_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
