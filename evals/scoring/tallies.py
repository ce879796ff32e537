"""Tallies of several systems on the same items, and metrics from the tallies of drawn clusters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regaze.evals.scoring.statistics import Array, draw_times, require_clusters
from regaze.evals.scoring.thresholds import Ranking
from regaze.evals.task import POOLED, Counts, Item, QuestionTask, Task, Total


@dataclass(frozen=True)
class System:
    """The answers of one system.

    Attributes:
        answers: Text by item id, one mapping per seed; further ids are ignored.
        margins: logit(yes) - logit(no) by item id, where the items are yes/no questions.
    """

    answers: Sequence[Mapping[str, str]]
    margins: Mapping[str, float] = field(default_factory=dict)


class Tallies:
    """Tallies of each system by cluster, seed and group.

    Attributes:
        items: The items' ids.
        groups: Names, in order of first appearance.
        totals: The groups that each total takes together.
        cluster_of: Place of each item's cluster.
        group_of: Place of each item's group.
        correct: True where a system got an item right, "systems items"; with several seeds: under
            most of them.
    """

    def __init__(self, task: Task, items: Sequence[Item], systems: Sequence[System]) -> None:
        for system in systems:
            for answers in system.answers:
                if missing := [item.id for item in items if item.id not in answers]:
                    raise ValueError(
                        f"{len(missing)} of {len(items)} items have no answer, e.g. "
                        f"{missing[0]!r}: score only items that every system has answered"
                    )
        self.task = task
        self.items = [item.id for item in items]
        clusters, self.cluster_of = _codes([item.cluster for item in items])
        require_clusters(len(clusters))
        self.groups, self.group_of = _codes([item.group for item in items])
        self.correct = np.empty((len(systems), len(items)), np.bool_)
        members: dict[tuple[int, int], list[int]] = {}
        for index, cell in enumerate(zip(self.cluster_of, self.group_of, strict=True)):
            members.setdefault(cell, []).append(index)
        # Most systems answer most questions alike; what is counted once needn't be again.
        known: dict[tuple[str, ...], tuple[list[bool], Counts]] = {}
        tallies = []
        for place, system in enumerate(systems):
            right = np.empty((len(system.answers), len(items)), np.bool_)
            for seed, answers in enumerate(system.answers):
                for indices in members.values():
                    asked = [items[i] for i in indices]
                    texts = [answers[item.id] for item in asked]
                    key = (asked[0].id, *texts)
                    if key not in known:
                        counted = [task.counts(*pair) for pair in zip(asked, texts, strict=True)]
                        hits = [counts["correct"] > 0 for counts in counted]
                        known[key] = hits, task.tally(asked, counted)
                    right[seed, indices], tally = known[key]
                    tallies.append(tally)
            self.correct[place] = right.mean(0) > 0.5
        self.keys = list(tallies[0])
        # (clusters, systems, seeds, groups, keys)
        shape = (len(clusters), len(systems), len(systems[0].answers), len(self.groups))
        self.counts = np.zeros((*shape, len(self.keys)))
        where_clusters, where_groups = np.array(list(members)).T
        rows = np.array([[tally[key] for key in self.keys] for tally in tallies])
        by_system = rows.reshape(*shape[1:3], len(members), len(self.keys))
        # Indices that a slice parts come first in the shape.
        self.counts[where_clusters, :, :, where_groups] = by_system.transpose(2, 0, 1, 3)
        self.totals = {
            name: total.groups for name, total in self._totals(self.counts.sum(0)).items()
        }
        self.ranking = None
        yes_no = isinstance(task, QuestionTask) and task.yes_no
        if yes_no and all(i.id in s.margins for s in systems for i in items):
            margins = [system.margins for system in systems]
            self.ranking = Ranking(items, margins, self.cluster_of, self.group_of)

    def point(self) -> dict[str, Array]:
        """Metrics from all items, shape (systems, seeds, groups + totals).

        Margins don't depend on the seed: what is made of them has one entry in its place.
        """
        ranks = self._ranks(np.ones((1, len(self.counts))))
        alike = {name: value[0, :, None] for name, value in ranks.items()}
        return {**self._metrics(self.counts.sum(0)), **alike}

    def replicas(self, draws: int, seed: int) -> dict[str, Array]:
        """The mean over the seeds in each replicate, shape (draws, systems, groups + totals)."""
        flat = self.counts.reshape(len(self.counts), -1)
        blocks = []
        for times in draw_times(len(flat), draws, seed):
            sums = (times @ flat).reshape(len(times), *self.counts.shape[1:])
            metrics = {name: value.mean(2) for name, value in self._metrics(sums).items()}
            blocks.append({**metrics, **self._ranks(times)})
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def digest(self) -> str:
        """SHA-256 of all that scores are made of, the task's metrics at work included."""
        metrics = self._metrics(self.counts.sum(0))
        names = [self.items, self.groups, self.keys, self.totals, list(metrics)]
        arrays = [self.cluster_of, self.group_of, self.correct, self.counts, *metrics.values()]
        if self.ranking:
            arrays += [self.ranking.yes, self.ranking.margins]
        found = hashlib.sha256(json.dumps(names).encode())
        for array in arrays:
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def _ranks(self, times: Array) -> dict[str, Array]:
        """AUC and best accuracy, shape (draws, systems, groups + totals).

        Of several groups the mean over those that have a ranking; pooled items have none, because
        margins of different questions aren't on one scale.
        """
        if self.ranking is None:
            return {}
        names, ranked = self.groups, self.ranking.ranked
        found = {}
        for key, value in self.ranking.scored(times).items():
            means = []
            for total, groups in self.totals.items():
                places = [i for i, name in enumerate(names) if name in groups and ranked[i]]
                known = places if total != POOLED else []
                mean = value[..., known].mean(-1) if known else np.full(value.shape[:-1], np.nan)
                means.append(mean)
            found[key] = np.concatenate([value, *(mean[..., None] for mean in means)], axis=-1)
        return found

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
