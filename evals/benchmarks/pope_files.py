"""POPE's questions about one's own pictures, as a file that it is asked from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.evals.benchmarks.annotated import Annotated
from regaze.evals.polling import Kind, Record, build_questions, draw_objects

IMAGES = 500
"""Images that POPE's own files ask about."""

RULES: Mapping[str, str] = {
    "images": "drawn with the seed from those with enough classes (main.py)",
    "yes": "the first classes of an image in the order of its annotations (main.py)",
    "random": "uniformly among all classes of the drawn images (utils.py, random)",
    "popular": "the most frequent class of the drawn images; ties: seen first (utils.py, popular)",
    "adversarial": "the most frequent companion, in the drawn images, of the class asked for just "
    "before; ties: seen first (utils.py, adversarial)",
    "exhausted": "where popular or adversarial has no class left, one at random",
}
"""Choices of absent objects, by RUCAIBox/POPE@3df3ba1 (arXiv 2305.10355, section 4). A class that
the image shows, or that was asked for about it, is never a no."""


@dataclass(frozen=True)
class Built:
    """Questions and what is to be said of them.

    Attributes:
        records: As `regaze.evals.polling.build_questions` gives them, kind after kind.
        images: Number of images that they are about.
        usable: Pictures with enough classes to ask for.
        drawn: True if there were more than were asked for, so that the seed decided.
        at_random: For each kind how many of its negatives no ranking gave.
        rare: Classes left out, with the number of pictures that show them.
    """

    records: Sequence[Record]
    images: int
    usable: int
    drawn: bool
    at_random: Mapping[Kind, int]
    rare: Mapping[str, int]

    @property
    def text(self) -> str:
        """The file's content: a JSON object a line."""
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """All but the questions, JSON-able."""
        return {
            "questions": len(self.records),
            "images": self.images,
            "usable": self.usable,
            "drawn": self.drawn,
            "at_random": dict(self.at_random),
            "rare": dict(self.rare),
            "rules": dict(RULES),
        }


def build(
    annotated: Annotated,
    kinds: Sequence[Kind],
    *,
    images: int | None = None,
    questions: int = 6,
    seed: int = 0,
    rarest: int = 1,
) -> Built:
    """Ask about pictures by POPE's rules; all kinds share images and positives.

    Args:
        annotated: Objects in the pictures.
        kinds: Ways to choose absent classes.
        images: Pictures to draw; default: 500, or all where there are fewer.
        questions: Per picture and kind; half of them are yes.
        seed: Seed of the draws.
        rarest: A class that fewer pictures show is not asked for, as if it weren't annotated;
            POPE asks for all.

    Raises:
        ValueError: An odd number of questions, too few pictures, or too few classes.
    """
    if questions < 2 or questions % 2:
        raise ValueError(f"half of the questions are yes, so {questions} per picture can't be")
    half = questions // 2
    shown = Counter(name for names in annotated.objects.values() for name in names)
    rare = {name: number for name, number in shown.items() if number < rarest}
    truth = {
        image: [name for name in names if name not in rare]
        for image, names in annotated.objects.items()
    }
    usable = sum(len(names) >= half for names in truth.values())
    classes = len(shown) - len(rare)
    left_out = (
        f", besides {len(rare)} that fewer than {rarest} pictures show ({', '.join(list(rare)[:3])}"
        f"{', ...' if len(rare) > 3 else ''})"
        if rare
        else ""
    )
    if not usable or (images is not None and usable < images):
        raise ValueError(
            f"{usable} of {len(truth)} annotated pictures show {half} classes or more{left_out}, "
            f"{'and some are' if images is None else f'{images} are'} needed: lower "
            f"{'' if images is None else '--n-images or '}{'--min-images or ' if rare else ''}"
            "--questions"
        )
    if classes < 2 * half:
        raise ValueError(
            f"the pictures show {classes} classes{left_out}: asking for {half} that are there and "
            f"{half} that aren't takes {2 * half} at least: lower --questions"
        )
    count = images if images is not None else (IMAGES if usable > IMAGES else None)
    records: list[Record] = []
    at_random = {}
    for kind in kinds:
        records += build_questions(truth, kind, images=count, per_image=half, seed=seed)
        pairs = draw_objects(truth, kind, images=count, per_image=half, seed=seed)
        at_random[kind] = sum(not pair.ranked for pair in pairs) if kind != "random" else len(pairs)
    drawn = count is not None and count < usable
    return Built(records, len({row["image"] for row in records}), usable, drawn, at_random, rare)
