"""Common parts of benchmarks that are lists of questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.benchmarks.data import Loader, Row, fingerprint
from regaze.evals.benchmarks.hub import Hub, read_hub
from regaze.evals.benchmarks.rows import arrange
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, QuestionTask, Sums
from regaze.hooks.checks import unknown

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Questions(QuestionTask):
    """A task made of items and a way to open their images.

    Attributes:
        items: All questions; those about one image are neighbours.
        open: Gives the image of a key, as RGB.
        profile: By whose rules answers are read.
        max_new_tokens: Longest answer to generate.
    """

    items: Sequence[Item]
    open: Loader = field(repr=False)
    profile: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"{self.name} has no questions: its files or rows are empty")

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of the questions, their truth and the names of their images."""
        return fingerprint(self.items)

    def load_image(self, item: Item) -> Image.Image:
        """The item's image as RGB.

        Raises:
            OSError: Missing or unreadable; the message names the file.
        """
        return self.open(str(item.image))


@dataclass
class ProfiledQuestions(Questions):
    """Questions made of rows, each with its truth, that are read under one of several profiles.

    A benchmark says how rows become items, and reads its own files in ``from_files``.

    Attributes:
        title: The benchmark's name as its authors write it.
        profiles: Ways to read answers and, for some, to ask, by name.
        hub: The place of a copy with the same fields on the Hub, if there is one.
    """

    profile: str = "official"
    max_new_tokens: int = 16
    title: ClassVar[str]
    profiles: ClassVar[Mapping[str, Any]]
    hub: ClassVar[Hub | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._known(self.profile)

    @classmethod
    def from_records(
        cls,
        records: Iterable[Row],
        load_image: Loader,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Self:
        """Take questions from memory.

        Args:
            records: Their fields are named in the description of the class.
            load_image: Gives the image of a key.
            profile: The way to read answers and, for some, to ask; default: the class's.
            max_new_tokens: Longest answer to generate; default: the class's.

        Raises:
            ValueError: A malformed or repeated question, no question at all, unknown profile.
        """
        rows = ((f"row {number}", row) for number, row in enumerate(records))
        return cls._build(rows, load_image, profile, max_new_tokens)

    @classmethod
    def from_hub(
        cls,
        dataset_id: str | None = None,
        *,
        profile: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Self:
        """Load a data set with the fields of the copy at `hub`, images included.

        Args:
            dataset_id: The data set's id or folder; default: the copy at `hub`.
            profile: As in `from_records`.
            max_new_tokens: As in `from_records`.

        Raises:
            ImportError: The package ``datasets`` isn't installed.
            ValueError: As in `from_records`, or the benchmark isn't read from the Hub.
            OSError: There is no such data set, or the Hub can't be reached.
        """
        if cls.hub is None:
            raise ValueError(f"{cls.title} isn't read from the Hub: give its own files")
        rows, load = read_hub(replace(cls.hub, id=dataset_id or cls.hub.id))
        return cls.from_records(rows, load, profile=profile, max_new_tokens=max_new_tokens)

    def under(self, profile: str) -> Self:
        """The same questions, their answers read under another profile.

        Raises:
            ValueError: Unknown profile, or it asks for something else.
        """
        mine, other = self.profiles[self.profile], self.profiles[self._known(profile)]
        if self._asked(mine) != self._asked(other):
            raise ValueError(
                f"answers to {self.title}'s profile {self.profile!r} can't be read as {profile!r}, "
                f"which asks in another way: make a run of its own with --profile {profile}"
            )
        return replace(self, profile=profile)

    @classmethod
    def _build(
        cls,
        rows: Iterable[tuple[str, Row]],
        load: Loader,
        profile: str | None,
        max_new_tokens: int | None,
    ) -> Self:
        """The task of rows, each with the place it was read from; None: the class's default."""
        profile = cls._known(cls.profile if profile is None else profile)
        longest = cls.max_new_tokens if max_new_tokens is None else max_new_tokens
        return cls(arrange(cls._items(rows, profile)), load, profile, longest)

    @classmethod
    @abstractmethod
    def _items(cls, rows: Iterable[tuple[str, Row]], profile: str) -> Iterable[tuple[str, Item]]:
        """Rows as items, each with its place."""

    @staticmethod
    def _asked(rules: Any) -> object:
        """The part of a profile that must be the same for answers to be read under it."""
        return None

    @classmethod
    def _known(cls, profile: str) -> str:
        if profile not in cls.profiles:
            raise ValueError(unknown(f"{cls.title} profile", profile, cls.profiles))
        return profile


@dataclass
class EarningQuestions(ProfiledQuestions):
    """Questions whose answers earn between 0 and 1, mostly what part of people agree with them."""

    headline: tuple[str, ...] = ("accuracy", "words")

    @abstractmethod
    def earned(self, item: Item, text: str) -> float:
        """The score that one answer earns."""

    def counts(self, item: Item, text: str) -> Counts:
        """The credit of one answer; it counts as ``correct`` if it earns more than half."""
        earned = self.earned(item, text)
        return {"n": 1, "earned": earned, "correct": int(earned > 0.5), **length(text)}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Mean of what answers earn, words and share of empty answers."""
        return shares(sums, accuracy="earned")

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        return {"accuracy": 1, "words": 0, "empty": -1}


def length(text: str) -> dict[str, int]:
    """Statistics of an answer's length; ``words`` are separated by white space."""
    return {"words": len(text.split()), "empty": int(not text.strip())}


def shares(sums: Sums, **counts: str) -> dict[str, NDArray[np.float64]]:
    """Statistics per answer: those named, ``words`` and ``empty``.

    Args:
        sums: Summed statistics, ``n`` among them.
        counts: For each metric its statistic.
    """
    named = {**counts, "words": "words", "empty": "empty"}
    return {metric: ratio(sums[key], sums["n"]) for metric, key in named.items()}
