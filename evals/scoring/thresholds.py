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
        yes = np.array([item.target == "yes" for item in items])
        members = [group_of == group for group in range(int(group_of.max()) + 1)]
        # A group that asks for one answer only (AMBER's existence questions) has no ranking.
        self.ranked = [bool(yes[m].any() and not yes[m].all()) for m in members]
        self.parts = [
            [_Part(values[m], yes[m], cluster_of[m]) for m in members]
            for values in (np.array([given[item.id] for item in items]) for given in margins)
        ]

    def scored(self, times: Array) -> dict[str, Array]:
        """AUC and best accuracy where each cluster counts so many times.

        Args:
            times: "draws clusters".

        Returns:
            For each name "draws systems groups"; NaN for a group with one kind of item.
        """
        values = np.full((len(DIRECTIONS), len(times), len(self.parts), len(self.ranked)), np.nan)
        by_cluster = np.ascontiguousarray(times.T)
        for system, parts in enumerate(self.parts):
            for group, part in enumerate(parts):
                if self.ranked[group]:
                    values[:, :, system, group] = part.scored(by_cluster)
        return dict(zip(DIRECTIONS, values, strict=True))


class _Part:
    """One system on one group: its items by rising margin."""

    def __init__(
        self, margins: Array, yes: NDArray[np.bool_], cluster_of: NDArray[np.int64]
    ) -> None:
        order = margins.argsort()
        rising, is_yes, self.cluster_of = margins[order], yes[order], cluster_of[order]
        self.signs = np.where(is_yes, -1.0, 1.0)[:, None]
        # A cut can't fall between equal margins: it stands behind the last of them. Compared, not
        # subtracted: where a method rules an answer out, margins are infinite.
        self.cuts = np.flatnonzero(np.append(rising[1:] != rising[:-1], True))
        self.yes, self.no = self.cluster_of[is_yes], self.cluster_of[~is_yes]
        # For each yes item the no items below it, and those below it or at its own margin.
        sides: tuple[Literal["left", "right"], ...] = ("left", "right")
        self.beaten = [rising[~is_yes].searchsorted(rising[is_yes], side) for side in sides]

    def scored(self, times: Array) -> tuple[Array, Array]:
        """AUC and best accuracy where each cluster counts so many times, "clusters draws"."""
        yes = times[self.yes]
        no_below = np.zeros((len(self.no) + 1, times.shape[1]))
        times[self.no].cumsum(0, out=no_below[1:])
        n_yes, n_no = yes.sum(0), no_below[-1]
        # Of the no items at its own margin a yes item beats half.
        less, at_most = (no_below[places] for places in self.beaten)
        auc = ratio((yes * (less + at_most)).sum(0) / 2, n_yes * n_no)
        # All yes items are right with the cut below everything; each cut further up adds the no
        # items below it and gives up the yes items.
        moved = (times[self.cluster_of] * self.signs).cumsum(0)[self.cuts].max(0)
        return auc, ratio(n_yes + moved.clip(0), n_yes + n_no)


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
