"""All measures of a model's heads on one benchmark, and what they leave in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regaze.evals.analysis import ablation
from regaze.evals.analysis.asked import Batch, Subject
from regaze.evals.analysis.direct import DirectEffect
from regaze.evals.analysis.distance import TextDistance, VisionDistance
from regaze.evals.analysis.divergence import Divergence
from regaze.evals.analysis.head_per_row import To
from regaze.evals.analysis.maps import HeadMap, Pairs
from regaze.evals.analysis.mass import VisualMass
from regaze.evals.runs import files
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.hooks.checks import unknown

RESULT = "heads.json"
_RANKED = ("ablation", "direct", "divergence", "mass")


class Measure(Protocol):
    """Look at heads, batch by batch; made of a subject, it raises if it can't be measured."""

    def add(self, batch: Batch) -> None:
        """Run a batch, and take down what heads did."""

    def maps(self) -> list[HeadMap]:
        """The maps that were measured."""


MEASURES: Mapping[str, type[Measure]] = {
    "mass": VisualMass,
    "divergence": Divergence,
    "direct": DirectEffect,
    "distance": TextDistance,
    "vision_distance": VisionDistance,
}
ALL = (*MEASURES, "ablation")
RANKS = {
    **{"ablation": "ablation", "ablation_yes": "ablation", "ablation_error": "ablation"},
    **{"direct": "direct", "direct_yes": "direct", "divergence": "divergence"},
    **{"mass": "mass", "answer_mass": "mass"},
    **{"distance": "distance", "distance_share": "distance"},
}
"""Maps that heads of the text tower can be ranked by, and the measures that they come of."""


@dataclass(frozen=True)
class Analysis:
    """The measurements of a model's heads.

    Attributes:
        model: Name of the model.
        title: The benchmark, in words.
        items: Number of items.
        maps: One for each measure, some have two.
        left_out: Measures that can't be taken, and why.
        cost: The ablation's cost, in words; empty without.
    """

    model: str
    title: str
    items: int
    maps: tuple[HeadMap, ...]
    left_out: Mapping[str, str]
    cost: str = ""

    def map(self, name: str) -> HeadMap:
        """The map of that name.

        Raises:
            ValueError: There is none; the message names the nearest.
        """
        by_name = {one.name: one for one in self.maps}
        if name not in by_name:
            why = self.left_out.get(name)
            raise ValueError(
                f"{name} wasn't measured: {why}" if why else unknown("measure", name, by_name)
            )
        return by_name[name]

    def ranked(self, by: str | None = None) -> HeadMap:
        """The map that heads of the text tower are ranked by.

        Raises:
            ValueError: There is none of that name, or none of that tower.
        """
        known = {one.name: one for one in self.maps if one.tower == "text"}
        name = by or next((one for one in (*_RANKED, *known) if one in known), None)
        if name is None or (by is None and not known):
            raise ValueError("no measure of the text tower was taken, so its heads have no rank")
        found = self.map(name)
        if found.tower != "text":
            raise ValueError(
                f"{name} is of the vision tower, whose heads methods don't take as heads="
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "model": self.model,
            "title": self.title,
            "items": self.items,
            "left_out": dict(self.left_out),
            "cost": self.cost,
            "maps": [one.to_dict() for one in self.maps],
        }


def load(folder: Path) -> Analysis:
    """Read what an analysis left in its folder.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        raise ValueError(f"{folder} holds no analysis of heads: there is no {RESULT} in it")
    found = files.read_json(path)
    try:
        maps = tuple(HeadMap.from_dict(one) for one in found.pop("maps"))
        return Analysis(**found, maps=maps)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no analysis of heads ({lacks}): name a folder made by regaze analyse heads"
        ) from error


def check_rank(by: str, measures: Sequence[str] | None = None) -> None:
    """Check that heads can be ranked by a map, before anything is measured.

    Args:
        by: The map's name.
        measures: Names in `ALL`; by default all that can be taken.

    Raises:
        ValueError: There is no such map of the text tower, or it comes of another measure.
    """
    if by not in RANKS:
        raise ValueError(unknown("measure to rank by", by, RANKS))
    if measures and RANKS[by] not in measures:
        raise ValueError(f"heads can't be ranked by {by}: {RANKS[by]} isn't among the measures")


def analyse(
    subject: Subject,
    out: Path,
    *,
    title: str,
    identity: Mapping[str, Any],
    measures: Sequence[str] | None = None,
    heads: Pairs | None = None,
    layers: Sequence[int] | None = None,
    to: To = "zero",
    rows: int = 64,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> Analysis:
    """Measure; of several processes the first one takes all measures but the ablation.

    Args:
        subject: The model and the items.
        out: Directory: ``heads.json``, and the ablation's margins, which are gone on with.
        title: The benchmark, in words.
        identity: Facts that tell this model from others.
        measures: Names in `ALL`; by default all that can be taken.
        heads: Heads to ablate; by default all, of
        layers: these layers, by default of all that attend.
        to: The fate of an ablated head.
        rows: Heads ablated at once.
        progress: Called with a measure, items done and items in all.
        world: This process among those that share the ablation.

    Raises:
        ValueError: An unknown measure, or one named that can't be taken.
        OSError: The directory can't be written, or another process writes to it.
    """
    for name in measures or ():
        if name not in ALL:
            raise ValueError(unknown("measure", name, ALL))
    named = list(dict.fromkeys(measures or ALL))
    left_out: dict[str, str] = {}
    taken: dict[str, Measure] = {}
    # All that can be refused is refused before the first pass.
    for name in named:
        try:
            if name == "ablation":
                ablation.check(subject)
            else:
                taken[name] = MEASURES[name](subject)  # type: ignore[call-arg]
        except (ValueError, NotImplementedError) as error:
            if measures:
                raise
            left_out[name] = str(error)
    with files.locked(out) if world.first else nullcontext():
        found: dict[str, list[HeadMap]] = {}
        cost = ""
        if "ablation" in named and "ablation" not in left_out:
            done = ablation.ablate(
                subject,
                out / "ablation",
                heads=heads,
                layers=layers,
                to=to,
                identity=identity,
                rows=rows,
                progress=progress,
                world=world,
            )
            found["ablation"], cost = done.maps(subject.host, subject.items), done.cost
        for name, measure in taken.items() if world.first else ():
            try:
                found[name] = _take(name, measure, subject, progress)
            except (ValueError, NotImplementedError) as error:
                if measures:
                    raise
                left_out[name] = str(error)
        maps = tuple(one for name in named for one in found.get(name, ()))
        analysis = Analysis(
            str(identity.get("name", type(subject.model).__name__)),
            title,
            len(subject.items),
            maps,
            left_out,
            cost,
        )
        if world.first:
            files.write_json(out / RESULT, analysis.to_dict())
    return analysis


def _take(name: str, measure: Measure, subject: Subject, progress: Progress) -> list[HeadMap]:
    done = 0
    progress(name, done, len(subject.items))
    for batch in subject.batches():
        measure.add(batch)
        done += len(batch.items)
        progress(name, done, len(subject.items))
    return measure.maps()
