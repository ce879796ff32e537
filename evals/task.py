"""The one shape every benchmark has: items, counts per answer, metrics from summed counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Self

Counts = Mapping[str, float]
Sums = Mapping[str, NDArray[np.float64]]
Metrics = Mapping[str, NDArray[np.float64]]

POOLED = "all items pooled"
"""Name of a total over all items whatever their group; groups of equal truths count as often."""


@dataclass(frozen=True)
class Item:
    """One question, mostly about one image.

    Attributes:
        id: Unique within the task, stable between runs, e.g. ``"adversarial/17"``.
        image: Key of the image for `QuestionTask.load_image`; None for a question about no image.
        prompt: The user's text, without chat template and without image placeholder.
        group: Subset the item belongs to, e.g. ``"adversarial"``; metrics are given per group.
        target: Truth that the scorer needs (JSON-able).
        choices: Answers to choose among by likelihood; the one with the lowest mean token
            cross-entropy is the answer. Empty: the answer is generated.
        cluster: The unit that statistics resample; default: the image.

    Raises:
        ValueError: It has neither image nor cluster, or holds what can't be stored as text.
    """

    id: str
    image: str | None
    prompt: str
    group: str = "all"
    target: Any = field(default=None, hash=False)
    choices: tuple[str, ...] = ()
    cluster: str = ""

    def __post_init__(self) -> None:
        if not self.cluster:
            if self.image is None:
                raise ValueError(f"item {self.id} has no image, so it needs a cluster")
            object.__setattr__(self, "cluster", self.image)
        for text in (
            self.id,
            self.image or "",
            self.prompt,
            self.group,
            *self.choices,
            self.cluster,
        ):
            if not is_text(text):
                raise ValueError(
                    f"item {self.id!a} holds half of a surrogate pair in {text!a:.60}, which is no "
                    "text and can't be stored: correct the data"
                )


def is_text(text: str) -> bool:
    """True if a string holds characters only; Python's may also hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Total:
    """Metrics of several groups together.

    Attributes:
        groups: The groups' names.
        metrics: As `Task.metrics` gives them for one group, or some of them.
    """

    groups: tuple[str, ...]
    metrics: Metrics


class Task(ABC):
    """A benchmark. Scoring is pure: no model, no network, no clock.

    ``counts`` turns one answer into sufficient statistics (true positives, mentions, ...) and
    ``metrics`` turns their sums into scores; a paired bootstrap then needs nothing else, because
    resampling images only changes the sums. Raw answers are stored and parsed at scoring time, so
    the same answers can be scored under another profile.

    Attributes:
        name: The benchmark's name.
        profile: Name of the rules that answers are read by.
        items: All items, in a fixed order; items of one image are neighbours.
        headline: Metrics that stand in short tables, the most important one first.
        absolute: Metrics that are shown as they are; the others are shares, shown in percent.
        units: The plural of a cluster's name.
    """

    name: str
    profile: str
    items: Sequence[Item]
    headline: tuple[str, ...] = ()
    absolute: tuple[str, ...] = ("words",)
    units: str = "images"

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """SHA-256 of the data the items were read from."""

    @abstractmethod
    def counts(self, item: Item, text: str) -> Counts:
        """Sufficient statistics of one answer; always the same keys.

        Holds ``correct`` (0 or 1): whether this answer counts as right, for flips and McNemar.
        """

    def told(self, item: Item, text: str) -> str:
        """An answer as a report shows it."""
        return text

    def picture(self, item: Item, folder: Path) -> Image.Image | None:
        """The pictures of a condition, where answers are pictures; None where they are words.

        Args:
            item: An item that was answered.
            folder: The condition's folder.

        Raises:
            OSError: The picture is gone.
        """
        return None

    def under(self, profile: str) -> Self:
        """The same items, their answers read under another profile.

        Raises:
            ValueError: There is none of that name, or it asks for something else.
        """
        if profile != self.profile:
            raise ValueError(f"{self.name} has only the profile {self.profile!r}, not {profile!r}")
        return self

    def tally(self, items: Sequence[Item], counts: Sequence[Counts]) -> Counts:
        """Sufficient statistics of all items that share a cluster and a group.

        Here their sum. A benchmark that looks at answers jointly (both questions about an image
        right) adds keys.
        """
        return {key: sum(each[key] for each in counts) for key in counts[0]}

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Scores from summed tallies, elementwise over arrays of sums; NaN where undefined."""

    def totals(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """Scores of several groups together, by name, the most quoted one last.

        Here, where there are several groups, the metrics of all items pooled (micro) and the
        unweighted mean of the groups' metrics (macro).

        Args:
            groups: Summed tallies of each group, elementwise as in `metrics`.
        """
        if len(groups) < 2:
            return {}
        means = mean_of([self.metrics(sums) for sums in groups.values()])
        name = f"mean of the {len(groups)}"
        return {**self.pooled(groups), name: Total(tuple(groups), means)}

    def pooled(self, groups: Mapping[str, Sums]) -> Mapping[str, Total]:
        """The metrics of all items whatever their group, if there are several groups."""
        if len(groups) < 2:
            return {}
        return {POOLED: Total(tuple(groups), self.metrics(add_up(list(groups.values()))))}

    @property
    @abstractmethod
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither (yes ratio)."""


class QuestionTask(Task):
    """A benchmark that asks a vision-language model questions.

    An item with ``choices`` is answered by the likeliest of them.

    Attributes:
        max_new_tokens: Longest answer to generate.
        yes_no: True if answers are yes or no, so that the margin between the two tells whether an
            intervention ranks answers better or only moved the threshold; ``target`` is then
            ``"yes"`` or ``"no"``, and ``metrics`` gives an ``accuracy`` to stand beside.
    """

    max_new_tokens: int
    yes_no: bool = False

    @abstractmethod
    def load_image(self, item: Item) -> Image.Image:
        """The item's image as RGB; not asked of an item without one.

        Raises:
            OSError: The image is missing or unreadable; the message names the file.
        """


def add_up(groups: Sequence[Sums]) -> Sums:
    """Sums of several groups taken together, for totals that pool the items."""
    return {key: np.sum([sums[key] for sums in groups], axis=0) for key in groups[0]}


def mean_of(each: Sequence[Metrics]) -> dict[str, NDArray[np.float64]]:
    """The unweighted mean of each metric."""
    return {name: np.mean([metrics[name] for metrics in each], axis=0) for name in each[0]}
