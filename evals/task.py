"""The one shape every benchmark has: items, counts per answer, metrics from summed counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Counts = Mapping[str, float]
Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        id: Unique within the task, stable between runs, e.g. ``"adversarial/17"``.
        cluster: The image's name: the unit that statistics resample.
        prompt: The user's text, without chat template and without image placeholder.
        group: Subset the item belongs to, e.g. ``"adversarial"``; metrics are given per group.
        target: What the scorer needs to know of the truth (JSON-able).
    """

    id: str
    cluster: str
    prompt: str
    group: str = "all"
    target: Any = field(default=None, hash=False)


class Task(Protocol):
    """A benchmark. Scoring is pure: no model, no network, no clock.

    ``counts`` turns one answer into sufficient statistics (true positives, mentions, ...) and
    ``metrics`` turns their sums into scores; a paired bootstrap then needs nothing else, because
    resampling images only changes the sums. Raw answers are stored and parsed at scoring time, so
    the same answers can be scored under another profile.
    """

    name: str
    profile: str
    max_new_tokens: int

    @property
    def items(self) -> Sequence[Item]:
        """All items, in a fixed order; items of one image are neighbours."""

    @property
    def data_hash(self) -> str:
        """SHA-256 of the data the items were read from."""

    def load_image(self, item: Item) -> Image.Image:
        """The item's image as RGB.

        Raises:
            OSError: The image is missing or unreadable; the message names the file.
        """

    def counts(self, item: Item, text: str) -> Counts:
        """Sufficient statistics of one answer; always the same keys.

        Holds ``correct`` (0 or 1): whether this answer counts as right, for flips and McNemar.
        """

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Scores from summed counts, elementwise over arrays of sums; NaN where undefined."""

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither (yes ratio)."""
