"""Edits as a task: answers are strips of the picture before and after, judged against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.edits.world import KINDS, Change, change, judge
from regaze.evals.runs import files, store
from regaze.evals.sandbox.painting.scenes import SIZE
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Task
from regaze.hooks.checks import check_choice

NAME = "edits"
SOURCES = ("painted", "drawn")
"""Origins of the pictures: the model's own, from noise; or the world's, inverted."""


@dataclass(frozen=True)
class EditSource:
    """The edits that a run makes; kept in its directory.

    Attributes:
        split: Split of the prompts; choose settings on ``"validation"``, report ``"test"``.
        count: The first so many of each kind.
        kinds: Some of `regaze.evals.edits.world.KINDS`.
        pictures: One of `SOURCES`.
        seed: Seed of the noise.
    """

    title: ClassVar[str] = "Edits"

    split: str = "validation"
    count: int = 50
    kinds: tuple[str, ...] = KINDS
    pictures: str = "painted"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            check_choice("editing set", "kinds", kind, KINDS)
        check_choice("editing set", "split", self.split, ("validation", "test"))
        check_choice("editing set", "pictures", self.pictures, SOURCES)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the kind of run."""
        return {"benchmark": NAME, **asdict(self)}


class Edits(Task):
    """One item per edit; pairs of prompts are what statistics resample.

    Of each kind: ``whole``, edits that are as they should be; their parts ``edited`` (the object is
    as asked) and ``kept`` (the other one stayed); ``background``, how far pixels that should have
    stayed moved, in grey levels; ``outline``, how far a recoloured object kept its shape. All are
    of usable sources, those that show what their prompt says, whose share is ``sources``.

    Args:
        source: The source of the edits.
        out: The study's directory, with the strips.
    """

    name = NAME
    profile = "truth"
    units = "pairs of prompts"
    headline = ("whole", "edited", "kept", "background")
    absolute = ("background",)

    def __init__(self, source: EditSource, out: Path) -> None:
        self.source, self.out = source, out
        self._change = cache(lambda kind, number: change(source.split, kind, number))
        self.items = [self._item(kind, n) for kind in source.kinds for n in range(source.count)]

    def _item(self, kind: str, number: int) -> Item:
        asked = self._change(kind, number)
        text = f"{asked.source.prompt} > {asked.edit.prompt}"
        return Item(f"{kind}/{number:04d}", None, text, kind, str(number), (), text)

    def asked(self, item: Item) -> Change:
        """An item's edit."""
        return self._change(item.group, int(item.target))

    def files(self) -> Mapping[str, str]:
        """Each strip's name without its ending."""
        return store.distinct_names(item.id for item in self.items)

    def noise_seed(self, item: Item) -> int:
        """The seed of the noise that both pictures of an item begin with."""
        return self.source.seed + 1000 * KINDS.index(item.group) + int(item.target)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the prompts."""
        return files.digest([(item.id, item.prompt) for item in self.items])

    def counts(self, item: Item, text: str) -> Counts:
        """Judgement of the strip in a file; ``correct`` is an edit as it should be.

        Raises:
            OSError: The strip is gone or damaged.
        """
        before, after = open_strip(self.out / text)
        found = judge(before, after, self.asked(item))
        return {
            "items": 1.0,
            "correct": float(found.whole),
            "usable": float(found.usable),
            "whole": float(found.whole),
            "edited": float(found.edited),
            "kept": float(found.kept),
            "background": found.background,
            "outline": found.outline or 0.0,
            "outlines": float(found.outline is not None),
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Means over usable sources."""
        of_usable = ("whole", "edited", "kept", "background")
        return {
            **{name: ratio(sums[name], sums["usable"]) for name in of_usable},
            "outline": ratio(sums["outline"], sums["outlines"]),
            "sources": ratio(sums["usable"], sums["items"]),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """More is better, but of the background's change."""
        return {
            "whole": 1,
            "edited": 1,
            "kept": 1,
            "background": -1,
            "outline": 1,
            "sources": 0,
        }


def strip(before: Image.Image, after: Image.Image) -> Image.Image:
    """A picture before and after, side by side."""
    both = [np.asarray(picture.convert("RGB")) for picture in (before, after)]
    return Image.fromarray(np.concatenate(both, 1))


def open_strip(path: Path) -> tuple[Image.Image, Image.Image]:
    """The pictures of a strip.

    Raises:
        OSError: It is gone or damaged.
    """
    with Image.open(path) as image:
        whole = image.convert("RGB")
    return whole.crop((0, 0, SIZE, SIZE)), whole.crop((SIZE, 0, 2 * SIZE, SIZE))
