"""POPE in small, and what systems might say to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.task import Task

Answers = dict[str, str]
Record = dict[str, Any]


def no_image(key: str) -> Image.Image:
    raise AssertionError(f"scoring must not load {key}")


def pope(
    images: int = 8,
    subsets: tuple[str, ...] = ("random", "popular"),
    load: Callable[[str], Image.Image] = no_image,
) -> Pope:
    """Two questions an image and subset, one of each sign."""
    return Pope.from_records(
        [
            {
                "question_id": 2 * image + (label == "no"),
                "image": f"{image}.jpg",
                "text": "?",
                "label": label,
                "category": subset,
            }
            for subset in subsets
            for image in range(images)
            for label in ("yes", "no")
        ],
        load,
    )


def right(task: Task) -> Answers:
    return {item.id: item.target for item in task.items}


def flip(answers: Answers, *ids: str) -> Answers:
    return {**answers, **{i: "no" if answers[i] == "yes" else "yes" for i in ids}}


def question(number: int = 1, image: str = "a.jpg", label: str = "yes", **more: Any) -> Record:
    return {"question_id": number, "image": image, "text": "Is it?", "label": label, **more}


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def values(task: Task, answers: list[str]) -> dict[str, float]:
    counted = [task.counts(item, text) for item, text in zip(task.items, answers, strict=True)]
    sums = {key: np.array(float(sum(row[key] for row in counted))) for key in counted[0]}
    return {name: float(value) for name, value in task.metrics(sums).items()}
