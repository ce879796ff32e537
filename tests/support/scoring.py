"""Scores of given answers by a task's own methods alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regaze.evals.task import Counts, Item, Sums, Task


def sections(task: Task, answers: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Metrics of each group and after them of each total; items without an answer are left out."""
    cells: dict[tuple[str, str], list[tuple[Item, Counts]]] = {}
    for item in task.items:
        if item.id in answers:
            counted = (item, task.counts(item, answers[item.id]))
            cells.setdefault((item.group, item.cluster), []).append(counted)
    groups: dict[str, list[Counts]] = {}
    for (group, _), members in cells.items():
        tally = task.tally([item for item, _ in members], [counts for _, counts in members])
        groups.setdefault(group, []).append(tally)
    sums: dict[str, Sums] = {
        group: {key: np.array(float(sum(t[key] for t in tallies))) for key in tallies[0]}
        for group, tallies in groups.items()
    }
    metrics = {group: task.metrics(each) for group, each in sums.items()}
    metrics |= {name: dict(total.metrics) for name, total in task.totals(sums).items()}
    return {
        name: {key: float(value) for key, value in each.items()} for name, each in metrics.items()
    }
