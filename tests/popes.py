"""POPE in small, and what systems might say to it: for tests of statistics."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.task import Task

Answers = dict[str, str]


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
