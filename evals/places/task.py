"""Placements as a task: answers are pictures, held against where things should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from regaze.evals.pictures.task import open_picture
from regaze.evals.places.world import KINDS, Placement, judge, placement
from regaze.evals.runs import files, store
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Item, Sums, Task
from regaze.hooks.checks import check_choice

NAME = "places"


@dataclass(frozen=True)
class PlaceSource:
    """The placements that a run paints; kept in its directory.

    Attributes:
        split: Split of the prompts; choose settings on ``"validation"``, report ``"test"``.
        count: The first so many of each kind.
        kinds: Some of `regaze.evals.places.world.KINDS`.
        seed: Seed of the noise.
    """

    title: ClassVar[str] = "Places"

    split: str = "validation"
    count: int = 50
    kinds: tuple[str, ...] = KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            check_choice("places", "kinds", kind, KINDS)
        check_choice("places", "split", self.split, ("validation", "test"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the kind of run."""
        return {"benchmark": NAME, **asdict(self)}


class Places(Task):
    """One item per placement, which is what statistics resample.

    Of each kind: ``whole``, pictures with every object in its box, the background's where it was,
    and nothing else; their parts ``placed`` (a share of the objects that have a box), ``kept`` and
    ``clean``; ``found``, the share that is anywhere in the picture; of compositions ``background``,
    how far pixels outside of the box moved, in grey levels, and ``outline``, how far what was
    placed has its picture's outline.

    Args:
        source: The source of the placements.
        out: The study's directory, with the pictures.
    """

    name = NAME
    profile = "truth"
    units = "placements"
    headline = ("whole", "placed", "found", "background")
    absolute = ("background",)

    def __init__(self, source: PlaceSource, out: Path) -> None:
        self.source, self.out = source, out
        self._placement = cache(lambda kind, number: placement(source.split, kind, number))
        self.items = [self._item(kind, n) for kind in source.kinds for n in range(source.count)]

    def _item(self, kind: str, number: int) -> Item:
        text = self._placement(kind, number).wanted.prompt
        # Objects, boxes and noise are drawn anew for each number, in few prompts.
        return Item(f"{kind}/{number:04d}", None, text, kind, str(number), (), str(number))

    def asked(self, item: Item) -> Placement:
        """An item's placement."""
        return self._placement(item.group, int(item.target))

    def files(self) -> Mapping[str, str]:
        """Each picture's name without its ending."""
        return store.distinct_names(item.id for item in self.items)

    def noise_seed(self, item: Item) -> int:
        """The seed of the noise that an item begins with."""
        return self.source.seed + 1000 * KINDS.index(item.group) + int(item.target)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the prompts and boxes."""
        return files.digest([(item.id, item.prompt, self.asked(item).boxes) for item in self.items])

    def counts(self, item: Item, text: str) -> Counts:
        """Judgement of the picture in a file; ``correct`` is one that is as it should be.

        Raises:
            OSError: The picture is gone or damaged.
        """
        asked = self.asked(item)
        seen = judge(open_picture(self.out / text), asked)
        whole = seen.placed == len(asked.boxes) and seen.kept and seen.clean
        composed = float(asked.thing is not None)
        return {
            "items": 1.0,
            "correct": float(whole),
            "objects": float(len(asked.boxes)),
            "placed": float(seen.placed),
            "found": float(seen.found),
            "clean": float(seen.clean),
            "composed": composed,
            "kept": composed * seen.kept,
            "background": seen.background,
            "outline": seen.outline,
            "put": composed * seen.placed,
        }

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Shares and means."""
        return {
            "whole": ratio(sums["correct"], sums["items"]),
            "placed": ratio(sums["placed"], sums["objects"]),
            "found": ratio(sums["found"], sums["objects"]),
            "clean": ratio(sums["clean"], sums["items"]),
            "kept": ratio(sums["kept"], sums["composed"]),
            "background": ratio(sums["background"], sums["composed"]),
            "outline": ratio(sums["outline"], sums["put"]),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """More is better, but of the background's change."""
        more = ("whole", "placed", "found", "clean", "kept", "outline")
        return {**dict.fromkeys(more, 1), "background": -1}
