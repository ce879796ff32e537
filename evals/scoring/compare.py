"""Score a task's answers and compare two systems that answered the same items.

A bootstrap replicate draws images once and applies the draw to both systems and to all groups, so
deltas are paired and totals over the groups are resampled as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from regaze.evals.scoring.statistics import (
    DRAWS,
    Change,
    Estimate,
    McNemar,
    change,
    estimate,
    mcnemar,
)
from regaze.evals.scoring.tallies import System, Tallies
from regaze.evals.task import Item, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Two systems on one group of items.

    Attributes:
        items: Number of items.
        clusters: Number of images.
        metrics: Change of each of the task's metrics.
        lost: Ids of items that only the baseline got right; with several seeds: under most of them.
        gained: Ids of items that only the other system got right, likewise.
        mcnemar: Test on ``lost`` and ``gained``. Where clusters hold several items the bootstrap
            p-value is the one to quote.
    """

    items: int
    clusters: int
    metrics: Mapping[str, Change]
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    mcnemar: McNemar


@dataclass(frozen=True)
class Comparison:
    """Two systems on a task.

    Attributes:
        groups: By name, in order of first appearance.
        totals: Several groups together, as the task defines it; the last one is the most quoted.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.
    """

    groups: Mapping[str, Group]
    totals: Mapping[str, Group]
    draws: int
    seed: int

    @property
    def sections(self) -> Mapping[str, Group]:
        """The groups and after them the totals."""
        return {**self.groups, **self.totals}

    @property
    def lost(self) -> tuple[str, ...]:
        """Ids of all items that only the baseline got right."""
        return tuple(key for group in self.groups.values() for key in group.lost)

    @property
    def gained(self) -> tuple[str, ...]:
        """Ids of all items that only the other system got right."""
        return tuple(key for group in self.groups.values() for key in group.gained)


@dataclass(frozen=True)
class Score:
    """One system on a task; the attributes are those of `Comparison`, and the sizes of groups."""

    groups: Mapping[str, Mapping[str, Estimate]]
    totals: Mapping[str, Mapping[str, Estimate]]
    items: Mapping[str, int]
    draws: int
    seed: int

    @property
    def sections(self) -> Mapping[str, Mapping[str, Estimate]]:
        """The groups and after them the totals."""
        return {**self.groups, **self.totals}


def score(
    task: Task,
    items: Sequence[Item],
    answers: Mapping[str, str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Score:
    """Metrics of one system with 95 % intervals from a bootstrap over clusters.

    Args:
        task: Scores the answers.
        items: The items asked.
        answers: Text by item id; further ids are ignored.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        ValueError: An item has no answer, or the items have fewer than two clusters.
    """
    ((found, _),) = assess(task, items, [System([answers])], draws=draws, seed=seed)
    return found


def compare(
    task: Task,
    items: Sequence[Item],
    baseline: Mapping[str, str],
    other: Mapping[str, str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """The changes from one system to another on the same items.

    Args:
        task: Scores the answers.
        items: The items that both were asked.
        baseline: Text by item id; further ids are ignored.
        other: The second system's texts.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        ValueError: An item lacks an answer, or the items have fewer than two clusters.
    """
    systems = [System([baseline]), System([other])]
    return assess(task, items, systems, draws=draws, seed=seed)[1][1]


def assess(
    task: Task,
    items: Sequence[Item],
    systems: Sequence[System],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[tuple[Score, Comparison]]:
    """Score several systems on the same items and compare each with the first.

    Where the task is one of yes/no questions and all margins are known, AUC and best accuracy
    (`regaze.evals.scoring.thresholds`) stand among the metrics.

    Args:
        task: Scores the answers.
        items: The items that all were asked.
        systems: Their answers, under equally many seeds; the first one is the baseline.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        ValueError: An item lacks an answer, or the items have fewer than two clusters.
    """
    return assessed(Tallies(task, items, systems), draws=draws, seed=seed)


def assessed(table: Tallies, *, draws: int, seed: int) -> list[tuple[Score, Comparison]]:
    """`assess` from tallies."""
    point, replicas = table.point(), table.replicas(draws, seed)
    sections = {**{name: [name] for name in table.groups}, **table.totals}
    inside = {
        name: np.isin(table.group_of, [table.groups.index(group) for group in groups])
        for name, groups in sections.items()
    }

    def estimates(system: int, place: int) -> dict[str, Estimate]:
        return {
            name: estimate(value[system, :, place], replicas[name][:, system, place])
            for name, value in point.items()
        }

    def group(system: int, place: int, members: NDArray[np.bool_]) -> Group:
        pair = [0, system]
        before, after = table.correct[pair]
        lost, gained = (
            tuple(key for key, yes in zip(table.items, members & flipped, strict=True) if yes)
            for flipped in (before & ~after, ~before & after)
        )
        return Group(
            items=int(members.sum()),
            clusters=len(set(table.cluster_of[members])),
            metrics={
                name: change(value[pair, :, place], replicas[name][:, pair, place])
                for name, value in point.items()
            },
            lost=lost,
            gained=gained,
            mcnemar=mcnemar(len(lost), len(gained)),
        )

    found = []
    for system in range(len(table.correct)):
        scores = [estimates(system, place) for place in range(len(sections))]
        changes = [group(system, *each) for each in enumerate(inside.values())]
        sizes = {name: int(members.sum()) for name, members in inside.items()}
        found.append(
            (
                Score(*_named(table, scores), sizes, draws, seed),
                Comparison(*_named(table, changes), draws, seed),
            )
        )
    return found


def to_json(value: Any) -> Any:
    """A result as JSON-able values: dataclasses become objects, NaN becomes ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(table: Tallies, sections: Sequence[T]) -> tuple[dict[str, T], dict[str, T]]:
    """Values of all sections as the groups' and the totals' by name."""
    n = len(table.groups)
    groups = dict(zip(table.groups, sections[:n], strict=True))
    return groups, dict(zip(table.totals, sections[n:], strict=True))
