"""Is it only a moved threshold? What yes/no margins say apart from where they are cut.

The margin of an answer is logit(yes) - logit(no) at its first token. An intervention that adds the
same to every margin says yes more often, and with that its accuracy and F1 may rise, but it tells
present from absent no better than before. So two figures without a cut stand beside them:

    AUC            = P(margin of a yes item > margin of a no item), ties counted half
    best accuracy  = max over t of the share of items right if the answer is yes iff margin > t

The best threshold is chosen on the same items, for every system and in every replicate alike: it
is a bound on what any threshold gives, no score that could be had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regaze.evals.scoring.statistics import Array, Change, ratio
from regaze.evals.task import Item

AUC, BEST = "auc", "best_accuracy"
DIRECTIONS: Mapping[str, int] = {AUC: 1, BEST: 1}

Reading = Literal["threshold", "ranking", "opposite"]
"""AUC's verdict on a changed score: it didn't move, it moved along, or it moved the other way."""


class Ranking:
    """AUC and best accuracy of each system's margins, yes items against no items of each group.

    Args:
        items: Yes/no items; their ``target`` is "yes" or "no".
        margins: Margin by item id, one mapping per system.
        cluster_of: Place of each item's cluster.
        group_of: Place of each item's group.
    """

    def __init__(
        self,
        items: Sequence[Item],
        margins: Sequence[Mapping[str, float]],
        cluster_of: NDArray[np.int64],
        group_of: NDArray[np.int64],
    ) -> None:
        self.yes = np.array([item.target == "yes" for item in items])
        self.margins = np.array([[given[item.id] for item in items] for given in margins])
        self.cluster_of = cluster_of
        self.members = [group_of == group for group in range(int(group_of.max()) + 1)]
        # A group that asks for one answer only (AMBER's existence questions) has no ranking.
        self.ranked = [bool(self.yes[m].any() and not self.yes[m].all()) for m in self.members]

    @cached_property
    def _parts(self) -> list[list[_Part]]:
        """The margins in order, by system and group."""
        return [
            [_Part(values[m], self.yes[m], self.cluster_of[m]) for m in self.members]
            for values in self.margins
        ]

    def scored(self, times: Array) -> dict[str, Array]:
        """AUC and best accuracy where each cluster counts so many times.

        Args:
            times: "draws clusters".

        Returns:
            For each name "draws systems groups"; NaN for a group with one kind of item.
        """
        values = np.full((len(DIRECTIONS), len(times), len(self.margins), len(self.ranked)), np.nan)
        # A row for each cluster, of the smallest type that holds the sums: rows stay in the cache.
        by_cluster = np.ascontiguousarray(times.T, np.int32)
        for system, parts in enumerate(self._parts):
            for group, part in enumerate(parts):
                if self.ranked[group]:
                    values[:, :, system, group] = part.scored(by_cluster)
        return dict(zip(DIRECTIONS, values, strict=True))


class _Part:
    """One system on one group: the clusters of its items by rising margin.

    Attributes:
        steps: Clusters of yes items and of no items. Neighbours are in one step where no cut
            between them can matter: items of one kind, and items with the same margin.
    """

    def __init__(
        self, margins: Array, yes: NDArray[np.bool_], cluster_of: NDArray[np.int64]
    ) -> None:
        order = margins.argsort()
        rising, yes, cluster_of = margins[order], yes[order], cluster_of[order]
        # Compared, not subtracted: where a method rules an answer out, margins are infinite.
        ends = np.flatnonzero(rising[1:] != rising[:-1]) + 1
        self.steps: list[tuple[list[int], list[int]]] = []
        for one, clusters in zip(np.split(yes, ends), np.split(cluster_of, ends), strict=True):
            step = clusters[one].tolist(), clusters[~one].tolist()
            both = list(zip(self.steps[-1], step, strict=True)) if self.steps else []
            if any(not before and not here for before, here in both):
                for before, here in both:
                    before.extend(here)
            else:
                self.steps.append(step)

    def scored(self, times: NDArray[np.int32]) -> tuple[Array, Array]:
        """AUC and best accuracy where each cluster counts so many times, "clusters draws"."""
        n_yes, n_no, most = (np.zeros(times.shape[1], np.int32) for _ in range(3))
        won = np.zeros(times.shape[1])
        for step in self.steps:
            yes, no = (times[clusters].sum(0, dtype=np.int32) for clusters in step)
            # A yes item beats the no items below it, and half of those at its own margin.
            won += yes * (n_no + no / 2)
            # All yes items are right with the cut below everything; each cut further up adds the
            # no items below it and gives up the yes items.
            n_yes += yes
            n_no += no
            np.maximum(most, n_no - n_yes, out=most)
        return ratio(won, n_yes * n_no.astype(np.float64)), ratio(n_yes + most, n_yes + n_no)


def reading(metrics: Mapping[str, Change]) -> Reading | None:
    """The reading of a change of accuracy or F1; None where neither changed or AUC isn't known.

    Args:
        metrics: Changes of one group's metrics, accuracy or F1 and AUC among them.
    """
    scores = [metrics[name] for name in ("accuracy", "f1") if name in metrics]
    moved = [score for score in scores if score.excludes_zero]
    if AUC not in metrics or not moved or math.isnan(metrics[AUC].delta):
        return None
    if not metrics[AUC].excludes_zero:
        return "threshold"
    return "ranking" if moved[0].delta * metrics[AUC].delta > 0 else "opposite"
