"""The scores of a run under one profile: its conditions, and the tables that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regaze.evals.runs.cost import Cost
from regaze.evals.scoring.compare import Comparison, Group, Score
from regaze.evals.scoring.statistics import Estimate

Status = Literal["scored", "silent", "unanswered"]


@dataclass(frozen=True)
class ConditionScores:
    """One condition's scores and what to know beside them.

    Attributes:
        label: The condition's label.
        control: The kind of control that it is, e.g. ``random heads``; None for what is compared.
        status: ``silent``: its intervention never acted, so nothing is reported of it;
            ``unanswered``: it has no answers yet.
        score: Metrics; None where nothing is reported.
        change: Comparison with the first condition; None for that one itself.
        answered: Answers given, over all seeds.
        errors: Items without an answer, for a stated reason, over all seeds.
        truncated: Answers cut at the length limit.
        config_sha256: Hash of everything its answers depend on.
        firing: The interventions' firing, as `regaze.hooks.report.Report.to_dict` gives it.
        apart: Why its questions didn't share the image's prefix; None if they did, or if none of
            the run's did.
        cost: The cost of its answers; None where that isn't known.
    """

    label: str
    control: str | None
    status: Status
    score: Score | None
    change: Comparison | None
    answered: int
    errors: int
    truncated: int
    config_sha256: str | None
    firing: Mapping[str, Any] | None
    apart: str | None
    cost: Cost | None

    @property
    def image_control(self) -> bool:
        """True if the model was shown something else than the item's image."""
        return "@" in self.label


@dataclass(frozen=True)
class Row:
    """One condition in one `Section`: its metrics, and its change where it isn't the first."""

    condition: ConditionScores
    metrics: Mapping[str, Estimate]
    change: Group | None


@dataclass(frozen=True)
class Section:
    """All reported conditions on one group of items, or on several groups together.

    Attributes:
        title: The group's or the total's name.
        items: Number of items.
        rows: The unedited model, what is compared with it, and then the controls.
    """

    title: str
    items: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class TaskScores:
    """One run under one scoring profile.

    Attributes:
        title: The run's name for readers.
        task: The task's name.
        profile: The scoring rules.
        directions: For each metric +1, -1 or 0: which way is better.
        headline: Metrics that stand in short tables, the most important one first.
        absolute: Metrics that are no shares.
        yes_no: True if the questions are yes/no questions.
        seeds: Answers per item.
        asked: Items asked.
        scored: Items that every reported condition has answered; only these are scored.
        clusters: Clusters (images) that the scored items are about.
        units: The plural of a cluster's name.
        conditions: The unedited model first.
        failures: Why items have no answer, by id.
    """

    title: str
    task: str
    profile: str
    directions: Mapping[str, int]
    headline: tuple[str, ...]
    absolute: tuple[str, ...]
    yes_no: bool
    seeds: int
    asked: int
    scored: int
    clusters: int
    units: str
    conditions: tuple[ConditionScores, ...]
    failures: Mapping[str, str]

    @property
    def silent(self) -> list[str]:
        """Labels of the conditions whose intervention never acted."""
        return [c.label for c in self.conditions if c.status == "silent"]

    @property
    def flips(self) -> bool:
        """True if anything went from right to wrong or back; some tasks know neither."""
        changes = [c.change for c in self.conditions if c.change]
        return any(change.lost or change.gained for change in changes)

    @property
    def groups(self) -> list[str]:
        """Names of the groups of items."""
        return next(list(c.score.groups) for c in self.conditions if c.score)

    @property
    def sections(self) -> list[Section]:
        """The groups, and after them the totals; the last one is the most quoted."""
        reported = [(c, c.score, c.change) for c in self.conditions if c.score]
        reported.sort(key=lambda one: one[0].control is not None)
        first = reported[0][1]
        return [
            Section(
                name,
                first.items[name],
                tuple(
                    Row(c, s.sections[name], d.sections[name] if d else None)
                    for c, s, d in reported
                ),
            )
            for name in first.sections
        ]
