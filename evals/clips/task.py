"""Clips as a task: answers are strips of painted frames, measured against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.clips import measures
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.runs import files, store
from regaze.evals.sandbox.painting.checker import check, total
from regaze.evals.sandbox.painting.scenes import SIZE
from regaze.evals.sandbox.video import FRAMES
from regaze.evals.sandbox.video.structure import estimate
from regaze.evals.sandbox.video.world import GRAIN, Clip, clip
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Task
from regaze.hooks.checks import check_choice

NAME = "video"
PROMPTS = ("empty", "full")
"""Prompts that a clip is painted from beside its normal maps: nothing, or its prompt."""

_DIRECTIONS = {
    "warping_error": -1,
    "flicker": -1,
    "colour_drift": -1,
    "structure_rmse": -1,
    "structure_psnr": 1,
    "found": 1,
}
_LEVELS = 255
"""Errors are shown in grey levels: as shares of the range they would be all zeros."""


@dataclass(frozen=True)
class ClipSource:
    """The clips that a run paints; kept in its directory.

    Attributes:
        split: Split of the clips; choose settings on ``"validation"``, report ``"test"``.
        count: The first so many.
        prompts: Some of ``PROMPTS``.
        frames: Frames of a clip.
        grain: Speeds are multiples of it, in pixels per frame.
        seed: Seed of the first clip's noise.
    """

    title: ClassVar[str] = "Clips, errors in grey levels of 255"

    split: str = "validation"
    count: int = 30
    prompts: tuple[str, ...] = PROMPTS
    frames: int = FRAMES
    grain: float = GRAIN
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for prompt in self.prompts:
            check_choice("study of clips", "prompts", prompt, PROMPTS)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the kind of run."""
        return {"benchmark": NAME, **asdict(self)}


class Clips(Task):
    """One item per clip and kind of prompt; clips are what statistics resample.

    Args:
        source: The source of the clips.
        out: The study's directory, with the strips.
        scorers: Scorers of pictures. They see all frames but the first, compare each with the one
            before, and are averaged over the clip.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A scorer's weights are missing.
    """

    name = NAME
    profile = "truth"
    units = "clips"

    def __init__(self, source: ClipSource, out: Path, scorers: Sequence[Scorer] = ()) -> None:
        self.source, self.out, self.scorers = source, out, tuple(scorers)
        self.headline = tuple(self.directions)
        shown_as_they_are = [name for scorer in scorers for name in scorer.absolute]
        self.absolute = (*(n for n in _DIRECTIONS if n != "found"), *shown_as_they_are)
        self.items = [
            Item(f"{prompt}/{number}", None, prompt, f"{prompt} prompt", number, (), str(number))
            for prompt in source.prompts
            for number in range(source.count)
        ]
        self._clip = cache(self._draw)
        self._scores = [scorer.load("cpu").score for scorer in scorers]

    def clip(self, item: Item) -> Clip:
        """An item's clip."""
        return self._clip(item.target)

    def prompt(self, item: Item) -> str:
        """The prompt that an item is painted from."""
        return self.clip(item).prompt if item.prompt == "full" else ""

    def files(self) -> Mapping[str, str]:
        """Each strip's name without its ending."""
        return store.distinct_names(item.id for item in self.items)

    def noise_seed(self, item: Item) -> int:
        """The seed of the noise that all frames of an item start from, with either prompt."""
        return self.source.seed + int(item.target)

    def _draw(self, number: int) -> Clip:
        source = self.source
        return clip(source.split, number, frames=source.frames, grain=source.grain)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the objects of all frames."""
        found = {item.target: self.clip(item) for item in self.items}
        return files.digest([asdict(one) for one in found.values()])

    def counts(self, item: Item, text: str) -> Counts:
        """Measures of the strip in a file; ``correct`` is all objects in all frames.

        Raises:
            OSError: The strip is gone or damaged.
        """
        frames, truth = open_strip(self.out / text), self.clip(item)
        counts = {"items": 1.0, "correct": 0.0, "found": 0.0, "wanted": 0.0}
        counts |= measure(frames, truth)
        if item.prompt == "full":
            asked = total(check(frames, [truth.wanted] * len(frames)))
            counts |= {key: float(asked[key]) for key in ("found", "wanted")}
            counts["correct"] = float(asked["right"] == len(frames))
        for score in self._scores:
            each = score(frames[1:], [self.prompt(item)] * (len(frames) - 1), frames[:-1])
            counts |= {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        return counts

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Means over the clips, and ``found``, a share of all prompted objects in all frames."""
        means = {name: ratio(sums[name], sums["items"]) for name in self.directions}
        return {**means, "found": ratio(sums["found"], sums["wanted"])}

    @property
    def directions(self) -> Mapping[str, int]:
        """Directions of the measures, and of what the scorers give."""
        further = (scorer.directions for scorer in self.scorers)
        return {name: way for each in (_DIRECTIONS, *further) for name, way in each.items()}


def measure(frames: Sequence[Image.Image], truth: Clip) -> dict[str, float]:
    """A painted clip against the truth.

    Args:
        frames: One per frame of the clip: RGB, 32 x 32.
        truth: The clip.

    Returns:
        ``warping_error``, ``flicker`` and ``colour_drift`` of the pictures and ``structure_rmse``
        of the normal maps estimated from them, in grey levels of 255, and ``structure_psnr``, in
        dB; see `regaze.evals.clips.measures`. NaN where undefined.
    """
    pictures, shown = as_array(frames), as_array([estimate(frame) for frame in frames])
    given = as_array(truth.normals)
    errors = {
        "warping_error": measures.warping_error(pictures, truth.flow, truth.visible),
        "flicker": measures.flicker(pictures, truth.still),
        "colour_drift": measures.colour_drift(pictures, truth.silhouettes),
        "structure_rmse": measures.rmse(given, shown),
    }
    levels = {name: _LEVELS * error for name, error in errors.items()}
    return {**levels, "structure_psnr": measures.psnr(given, shown)}


def as_array(frames: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Frames as "F H W C", 0 to 1."""
    return np.stack([np.asarray(frame.convert("RGB"), np.float64) / 255 for frame in frames])


def strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames side by side in one picture."""
    joined = np.concatenate([np.asarray(frame.convert("RGB")) for frame in frames], 1)
    return Image.fromarray(joined)


def open_strip(path: Path) -> list[Image.Image]:
    """The frames of a strip.

    Raises:
        OSError: It is gone or damaged.
    """
    with Image.open(path) as image:
        whole = image.convert("RGB")
    return [whole.crop((left, 0, left + SIZE, SIZE)) for left in range(0, whole.width, SIZE)]
