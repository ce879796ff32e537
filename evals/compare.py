"""Score a task's answers and compare two systems that answered the same items.

A bootstrap replicate draws images once and applies the draw to both systems and to all groups, so
deltas are paired and the macro mean of the groups is resampled as a whole.
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
from regaze.evals.task import Item, Task


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
        macro: Metrics are unweighted means over the groups, taken within each replicate; the rest
            is about all items together.
        draws: Bootstrap replicates.
        seed: Seed of the resampling.
    """

    groups: Mapping[str, Group]
    macro: Group
    draws: int
    seed: int


@dataclass(frozen=True)
class Score:
    """One system on a task; the attributes are those of `Comparison`."""

    groups: Mapping[str, Mapping[str, Estimate]]
    macro: Mapping[str, Estimate]
    draws: int
    seed: int


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

    def estimates(group: int) -> dict[str, Estimate]:
        return {
            name: estimate(float(value[0, group]), replicas[name][:, 0, group])
            for name, value in point.items()
        }

    groups = {name: estimates(i) for i, name in enumerate(table.groups)}
    return Score(groups, estimates(-1), draws, seed)


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

    def group(index: int, members: NDArray[np.bool_]) -> Group:
        lost = _ids(items, members & before & ~after)
        gained = _ids(items, members & ~before & after)
        return Group(
            items=int(members.sum()),
            clusters=len(set(table.cluster_of[members])),
            metrics={
                name: change(value[:, index], replicas[name][..., index])
                for name, value in point.items()
            },
            lost=lost,
            gained=gained,
            mcnemar=mcnemar(len(lost), len(gained)),
        )

    groups = {name: group(i, table.group_of == i) for i, name in enumerate(table.groups)}
    return Comparison(groups, group(-1, np.full(len(items), True)), draws, seed)


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
    """Counts of each system, summed by cluster and group."""

    def __init__(
        self, task: Task, items: Sequence[Item], systems: Sequence[Mapping[str, str]]
    ) -> None:
        for answers in systems:
            if missing := [item.id for item in items if item.id not in answers]:
                raise ValueError(
                    f"{len(missing)} of {len(items)} items have no answer, e.g. {missing[0]!r}: "
                    "score only items that every system has answered"
                )
        counted = [[task.counts(item, answers[item.id]) for item in items] for answers in systems]
        clusters, self.cluster_of = _codes([item.cluster for item in items])
        self.groups, self.group_of = _codes([item.group for item in items])
        self.keys = list(counted[0][0]) if items else []
        self.task = task
        self.correct = np.array([[row["correct"] > 0 for row in rows] for rows in counted])
        # (clusters, systems, groups, keys)
        self.counts = np.zeros((len(clusters), len(systems), len(self.groups), len(self.keys)))
        for system, rows in enumerate(counted):
            values = np.array([[row[key] for key in self.keys] for row in rows])
            np.add.at(self.counts[:, system], (self.cluster_of, self.group_of), values)

    def point(self) -> dict[str, Array]:
        """Metrics from all items, shape (systems, groups + macro)."""
        return {name: value[0] for name, value in self._metrics(self.counts.sum(0)[None]).items()}

    def replicas(self, draws: int, seed: int) -> dict[str, Array]:
        """Metrics of each replicate, shape (draws, systems, groups + macro)."""
        return self._metrics(bootstrap_sums(self.counts, draws, seed))

    def _metrics(self, sums: Array) -> dict[str, Array]:
        metrics = self.task.metrics({key: sums[..., i] for i, key in enumerate(self.keys)})
        return {
            name: np.concatenate([value, value.mean(-1, keepdims=True)], axis=-1)
            for name, value in metrics.items()
        }


def _codes(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct names in order of first appearance, and the place of each name among them."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(place), np.array([place[name] for name in names], dtype=np.int64)


def _ids(items: Sequence[Item], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(item.id for item, yes in zip(items, chosen, strict=True) if yes)
