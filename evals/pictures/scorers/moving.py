"""Clips of the painting world: whether things are there in all frames, move, and don't flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.pictures.scorers.base import IMAGES, Images, Ready, Scorer, register
from regaze.evals.sandbox.painting.checker import check
from regaze.evals.sandbox.painting.detector import Blob, segment
from regaze.evals.sandbox.painting.prompts import Kind, parse
from regaze.evals.sandbox.painting.scenes import SIZE
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Metrics, Sums

_GROUND = 0.05
"""Opacity up to which a pixel is ground."""


@register
@dataclass(frozen=True)
class Moving(Scorer):
    """The prompted objects from frame to frame; no flow is known or needed.

    ``right`` is the share of clips that show every prompted object in every frame, ``kept`` the
    share of prompted objects that are there in every frame, and ``found`` that over single frames.
    ``motion`` is how far objects that are there in two neighbouring frames move, in pixels;
    ``jerk`` how far from there one is in a third frame that goes straight on at that speed;
    ``drift`` how much its blob's area changes, as a share, and ``flicker`` the mean absolute
    difference of neighbouring frames where both are ground, in grey levels of 255. In the world's
    own clips ``motion`` is about 2 and ``jerk`` 1, because things turn back at the edges and at
    each other; the others are 1, 1, 1, next to 0 and 0.
    """

    name: ClassVar[str] = "moving"
    summary: ClassVar[str] = "objects kept, motion and flicker, for clips of the painting world"
    paper: ClassVar[str] = "none"
    directions: ClassVar = {
        "right": 1, "kept": 1, "found": 1, "motion": 0, "jerk": -1, "drift": -1, "flicker": -1,
    }  # fmt: skip
    absolute: ClassVar = ("motion", "jerk", "flicker")
    strips: ClassVar = True

    def check(self, prompts: Sequence[str]) -> None:
        """Check that every prompt is of the painting world."""
        for prompt in prompts:
            parse(prompt)

    def load(self, device: str) -> Ready:
        """Return the checker, which needs nothing loaded."""
        return Ready(_score, self.identity("regaze", "scipy"))

    def metrics(self, sums: Sums) -> Metrics:
        """Shares of clips, of objects and of objects in frames, and means over steps."""
        return {
            "right": ratio(sums["right"], sums[IMAGES]),
            "kept": ratio(sums["kept"], sums["wanted"]),
            "found": ratio(sums["found"], sums["asked"]),
            "motion": ratio(sums["moved"], sums["steps"]),
            "jerk": ratio(sums["turned"], sums["turns"]),
            "drift": ratio(sums["drifted"], sums["steps"]),
            "flicker": ratio(sums["flicker"], sums["grounds"]),
        }

    def told(self, counts: Counts) -> str:
        """The fates of the prompted objects, in words."""
        kept = f"{counts['kept']:.0f} of {counts['wanted']:.0f} kept"
        if not counts["steps"]:
            return kept
        return f"{kept}, {counts['moved'] / counts['steps']:.2f} pixels a frame"


def _score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
    return [_clip(frames_of(image), prompt) for image, prompt in zip(images, prompts, strict=True)]


def frames_of(strip: Image.Image) -> list[Image.Image]:
    """The frames of a strip.

    Raises:
        ValueError: It isn't made of the painting world's pictures.
    """
    if strip.height != SIZE or strip.width % SIZE:
        raise ValueError(
            f"a strip of the painting world's pictures is {SIZE} pixels high and some times that "
            f"wide, not {strip.width} x {strip.height}"
        )
    return [strip.crop((left, 0, left + SIZE, SIZE)) for left in range(0, strip.width, SIZE)]


def _clip(frames: Sequence[Image.Image], prompt: str) -> Counts:
    wanted = parse(prompt)
    seen = [
        _places(verdict.blobs, wanted.kinds) for verdict in check(frames, [prompt] * len(frames))
    ]
    moved, drifted, steps = 0.0, 0.0, 0
    for before, after in zip(seen[:-1], seen[1:], strict=True):
        for kind in before.keys() & after.keys():
            one, two = before[kind], after[kind]
            moved += float(np.hypot(two.x - one.x, two.y - one.y))
            drifted += abs(two.area - one.area) / one.area
            steps += 1
    turns = [
        float(np.hypot(c.x - 2 * b.x + a.x, c.y - 2 * b.y + a.y))
        for one, two, three in zip(seen, seen[1:], seen[2:], strict=False)
        for kind in one.keys() & two.keys() & three.keys()
        for a, b, c in [(one[kind], two[kind], three[kind])]
    ]
    grounds = [segment(np.asarray(frame, np.float64))[0] <= _GROUND for frame in frames]
    flicker = _flicker(frames, grounds)
    kept = sum(all(kind in places for places in seen) for kind in wanted.kinds)
    return {
        "right": float(kept == len(wanted.kinds)),
        "kept": float(kept),
        "wanted": float(len(wanted.kinds)),
        "found": float(sum(len(places) for places in seen)),
        "asked": float(len(wanted.kinds) * len(frames)),
        "moved": moved,
        "turned": sum(turns),
        "turns": float(len(turns)),
        "drifted": drifted,
        "steps": float(steps),
        "flicker": float(np.mean(flicker)) if flicker else 0.0,
        "grounds": float(bool(flicker)),
    }


def _places(blobs: Sequence[Blob], kinds: Sequence[Kind]) -> dict[Kind, Blob]:
    """The largest blob of each kind that a frame shows."""
    found: dict[Kind, Blob] = {}
    for blob in blobs:
        kind = next((k for k in kinds if (k.colour, k.shape) == (blob.colour, blob.shape)), None)
        if kind is not None:
            found.setdefault(kind, blob)
    return found


def _flicker(frames: Sequence[Image.Image], grounds: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Differences of neighbouring frames where both are ground, in grey levels."""
    levels = [np.asarray(frame, np.float64) for frame in frames]
    found = []
    for number in range(len(frames) - 1):
        both = grounds[number] & grounds[number + 1]
        if both.any():
            found.append(float(np.abs(levels[number + 1] - levels[number])[both].mean()))
    return found
