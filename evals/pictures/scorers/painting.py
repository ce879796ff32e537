"""The painting world's checker: which of the prompted objects are there. No neural scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from regaze.evals.pictures.scorers.base import IMAGES, Images, Ready, Scorer, register
from regaze.evals.sandbox.painting.checker import Verdict, check
from regaze.evals.sandbox.painting.prompts import parse
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Metrics, Sums


@register
@dataclass(frozen=True)
class Painting(Scorer):
    """Counts what became of each prompted object, see `regaze.evals.sandbox.painting.checker`.

    ``right`` is the share of pictures with every prompted object, ``found`` the share of prompted
    objects that are there; ``missing`` (neglect), ``leaked``, ``swapped`` and ``malformed`` are
    shares of prompted objects too, and ``extra`` is the number of other things per picture.
    ``unwanted`` is the share of pictures that show what their prompt says must not be there.
    """

    name: ClassVar[str] = "painting"
    summary: ClassVar[str] = "prompted objects that are there, for prompts of the painting world"
    paper: ClassVar[str] = "none"
    directions: ClassVar = {
        "right": 1,
        "found": 1,
        "missing": -1,
        "leaked": -1,
        "swapped": -1,
        "malformed": -1,
        "extra": -1,
        "relation": 1,
        "unwanted": -1,
    }
    headline: ClassVar = ("right", "found", "missing", "leaked")
    absolute: ClassVar = ("extra",)

    def check(self, prompts: Sequence[str]) -> None:
        """Check that every prompt is of the painting world."""
        for prompt in prompts:
            parse(prompt)

    def load(self, device: str) -> Ready:
        """Return the checker, which needs nothing loaded."""
        return Ready(_score, self.identity("regaze", "scipy"))

    def metrics(self, sums: Sums) -> Metrics:
        """Shares of pictures, of prompted objects, and of relations that can be seen."""
        objects = ("found", "missing", "leaked", "swapped", "malformed")
        none = np.zeros_like(sums["wanted"])  # In scores that were stored before.
        return {
            "right": ratio(sums["right"], sums[IMAGES]),
            **{name: ratio(sums[name], sums["wanted"]) for name in objects},
            "extra": ratio(sums["extra"], sums[IMAGES]),
            "relation": ratio(sums["related"], sums["relations"]),
            "unwanted": ratio(sums.get("unwanted", none), sums.get("negated", none)),
        }

    def told(self, counts: Counts) -> str:
        """The fates of the prompted objects, e.g. ``2 of 3 found, 1 missing``."""
        others = ("swapped", "leaked", "malformed", "wrong", "missing", "extra", "unwanted")
        named = [f"{counts[name]:.0f} {name}" for name in others if counts.get(name)]
        return ", ".join([f"{counts['found']:.0f} of {counts['wanted']:.0f} found", *named])

    def value(self, counts: Counts) -> float:
        """Objects found over objects wanted, extra or unwanted: more than right or wrong."""
        others = counts["extra"] + counts.get("unwanted", 0.0)
        return counts["found"] / (counts["wanted"] + others)


def _score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
    negated = [parse(prompt).unwanted is not None for prompt in prompts]
    return [
        {**_counts(verdict), "negated": float(one)}
        for verdict, one in zip(check(images, prompts), negated, strict=True)
    ]


def _counts(verdict: Verdict) -> Counts:
    told = verdict.related is not None
    return {
        **asdict(verdict.counts),
        "unwanted": float(verdict.counts.unwanted > 0),
        "right": float(verdict.counts.right),
        "relations": float(told),
        "related": float(bool(verdict.related)),
    }
