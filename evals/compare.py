"""Score a task's answers and compare two systems that answered the same items.

A bootstrap replicate draws images once and applies the draw to both systems and to all groups, so
deltas are paired and totals over the groups are resampled as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regaze.evals.statistics import (
    DRAWS,
    Array,
    Change,
    Estimate,
    McNemar,
    bootstrap_sums,
    change,
    estimate,
    mcnemar,
)
from regaze.evals.task import Item, Task, Total


@dataclass(frozen=True)
class Group:
    """Two systems on one group of items.

    Attributes:
        items: Number of items.
        clusters: Number of images.
        metrics: Change of each of the task's metrics.
        lost: Ids of items that only the baseline got right.
        gained: Ids of items that only the other system got right.
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
    """One system on a task; the attributes are those of `Comparison`."""

    groups: Mapping[str, Mapping[str, Estimate]]
    totals: Mapping[str, Mapping[str, Estimate]]
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
        items: What was asked.
        answers: Text by item id; further ids are ignored.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        ValueError: An item has no answer, or the items have fewer than two clusters.
    """
    table = _Table(task, items, [answers])
    replicas, point = table.replicas(draws, seed), table.point()

    def estimates(place: int) -> dict[str, Estimate]:
        return {
            name: estimate(float(value[0, place]), replicas[name][:, 0, place])
            for name, value in point.items()
        }

    return Score(
        {name: estimates(place) for place, name in enumerate(table.groups)},
        {name: estimates(place) for place, name in enumerate(table.totals, len(table.groups))},
        draws,
        seed,
    )


def compare(
    task: Task,
    items: Sequence[Item],
    baseline: Mapping[str, str],
    other: Mapping[str, str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """What changed from one system to another on the same items.

    Args:
        task: Scores the answers.
        items: What both were asked.
        baseline: Text by item id; further ids are ignored.
        other: The second system's texts.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        ValueError: An item lacks an answer, or the items have fewer than two clusters.
    """
    table = _Table(task, items, [baseline, other])
    replicas, point = table.replicas(draws, seed), table.point()
    before, after = table.correct

    def group(place: int, names: Sequence[str]) -> Group:
        members = np.isin(table.group_of, [table.groups.index(name) for name in names])
        lost = _ids(items, members & before & ~after)
        gained = _ids(items, members & ~before & after)
        return Group(
            items=int(members.sum()),
            clusters=len(set(table.cluster_of[members])),
            metrics={
                name: change(value[:, place], replicas[name][..., place])
                for name, value in point.items()
            },
            lost=lost,
            gained=gained,
            mcnemar=mcnemar(len(lost), len(gained)),
        )

    return Comparison(
        {name: group(place, [name]) for place, name in enumerate(table.groups)},
        {
            name: group(place, names)
            for place, (name, names) in enumerate(table.totals.items(), len(table.groups))
        },
        draws,
        seed,
    )


def to_json(value: Any) -> Any:
    """A result as JSON-able values: dataclasses become objects, NaN becomes ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Table:
    """Tallies of each system by cluster and group."""

    def __init__(
        self, task: Task, items: Sequence[Item], systems: Sequence[Mapping[str, str]]
    ) -> None:
        for answers in systems:
            if missing := [item.id for item in items if item.id not in answers]:
                raise ValueError(
                    f"{len(missing)} of {len(items)} items have no answer, e.g. {missing[0]!r}: "
                    "score only items that every system has answered"
                )
        self.task = task
        clusters, self.cluster_of = _codes([item.cluster for item in items])
        self.groups, self.group_of = _codes([item.group for item in items])
        cells: dict[tuple[int, int], list[int]] = {}
        for index, cell in enumerate(zip(self.cluster_of, self.group_of, strict=True)):
            cells.setdefault(cell, []).append(index)
        counted = [[task.counts(item, answers[item.id]) for item in items] for answers in systems]
        self.correct = np.array([[row["correct"] > 0 for row in rows] for rows in counted])
        tallies = [
            {
                cell: task.tally([items[i] for i in members], [rows[i] for i in members])
                for cell, members in cells.items()
            }
            for rows in counted
        ]
        self.keys = list(next(iter(tallies[0].values()))) if items else []
        # (clusters, systems, groups, keys)
        self.counts = np.zeros((len(clusters), len(systems), len(self.groups), len(self.keys)))
        for system, cells_of in enumerate(tallies):
            for (cluster, group), tally in cells_of.items():
                self.counts[cluster, system, group] = [tally[key] for key in self.keys]
        self.totals = {
            name: total.groups for name, total in self._totals(self.counts.sum(0)).items()
        }

    def point(self) -> dict[str, Array]:
        """Metrics from all items, shape (systems, groups + totals)."""
        return self._metrics(self.counts.sum(0))

    def replicas(self, draws: int, seed: int) -> dict[str, Array]:
        """Metrics of each replicate, shape (draws, systems, groups + totals)."""
        return self._metrics(bootstrap_sums(self.counts, draws, seed))

    def _metrics(self, sums: Array) -> dict[str, Array]:
        metrics = self.task.metrics(self._named(sums))
        totals = [total.metrics for total in self._totals(sums).values()]
        nothing = np.full(sums.shape[:-2], np.nan)
        return {
            name: np.stack(
                [*np.moveaxis(value, -1, 0), *(total.get(name, nothing) for total in totals)],
                axis=-1,
            )
            for name, value in metrics.items()
        }

    def _totals(self, sums: Array) -> Mapping[str, Total]:
        groups = {name: self._named(sums[..., i, :]) for i, name in enumerate(self.groups)}
        return self.task.totals(groups)

    def _named(self, sums: Array) -> dict[str, Array]:
        return {key: sums[..., i] for i, key in enumerate(self.keys)}


def _codes(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names in order of first appearance, and the place of each name among them."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(place), np.array([place[name] for name in names], dtype=np.int64)


def _ids(items: Sequence[Item], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(item.id for item, yes in zip(items, chosen, strict=True) if yes)
