"""Score a run: every condition by itself, and against the unedited model on the same items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regaze.evals.compare import Comparison, Group, Score, compare, score
from regaze.evals.results import Answers, RunResult
from regaze.evals.statistics import DRAWS, Estimate
from regaze.evals.task import Task

Status = Literal["scored", "silent", "unanswered"]


@dataclass(frozen=True)
class ConditionScores:
    """One condition's scores and what to know beside them.

    Attributes:
        label: The condition's label.
        status: ``silent``: its intervention never acted, so nothing is reported of it;
            ``unanswered``: it has no answers yet.
        score: Metrics; None where nothing is reported.
        change: Comparison with the first condition; None for that one itself.
        answered: Items with an answer.
        errors: Items without one, for a stated reason.
        truncated: Answers cut at the length limit.
        config_sha256: Hash of everything its answers depend on.
        firing: What the interventions did, as `regaze.hooks.report.Report.to_dict` gives it.
    """

    label: str
    status: Status
    score: Score | None
    change: Comparison | None
    answered: int
    errors: int
    truncated: int
    config_sha256: str | None
    firing: Mapping[str, Any] | None


@dataclass(frozen=True)
class Row:
    """One condition in one `Section`: its metrics, and its change where it isn't the first."""

    condition: ConditionScores
    metrics: Mapping[str, Estimate]
    change: Group | None


@dataclass(frozen=True)
class Section:
    """All reported conditions on one group of items, or on several groups together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class TaskScores:
    """One run under one scoring profile.

    Attributes:
        title: What a reader calls it.
        task: The task's name.
        profile: The scoring rules.
        directions: For each metric +1, -1 or 0: which way is better.
        headline: Metrics that stand in short tables, the most important one first.
        asked: Items asked.
        scored: Items that every reported condition has answered; only these are scored.
        clusters: Images that the scored items are about.
        conditions: The unedited model first.
        failures: Why items have no answer, by id.
    """

    title: str
    task: str
    profile: str
    directions: Mapping[str, int]
    headline: tuple[str, ...]
    asked: int
    scored: int
    clusters: int
    conditions: tuple[ConditionScores, ...]
    failures: Mapping[str, str]

    @property
    def silent(self) -> list[str]:
        """Labels of the conditions whose intervention never acted."""
        return [c.label for c in self.conditions if c.status == "silent"]

    @property
    def sections(self) -> list[Section]:
        """The groups, and after them the totals; the last one is the most quoted."""
        reported = [(c, c.score, c.change) for c in self.conditions if c.score]
        return [
            Section(
                name,
                tuple(
                    Row(c, s.sections[name], d.sections[name] if d else None)
                    for c, s, d in reported
                ),
            )
            for name in reported[0][1].sections
        ]


def score_run(
    result: RunResult,
    *,
    task: Task | None = None,
    title: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskScores:
    """Score what a run has answered so far.

    Args:
        result: The run.
        task: The same task under another profile; default: the run's own.
        title: Default: the task's name.
        draws: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Nothing is answered by all conditions yet, or only one image is.
    """
    task = task or result.task
    live = [a for a in result.answers if _status(a) == "scored"]
    items = [i for i in result.items if all(i.id in a.records and a.records[i.id].ok for a in live)]
    failures = {
        record.id: record.error
        for answers in result.answers
        for record in answers.records.values()
        if record.error is not None
    }
    if not live or not items:
        why = f": {next(iter(failures.values()))}" if failures else ""
        raise ValueError(f"{result.out} has no item that every condition has answered{why}")
    before = _texts(live[0])
    conditions = []
    for answers in result.answers:
        own, change, texts = None, None, _texts(answers)
        if answers in live:
            own = score(task, items, texts, draws=draws, seed=seed)
        if answers in live[1:]:
            change = compare(task, items, before, texts, draws=draws, seed=seed)
        conditions.append(_condition(answers, own, change))
    return TaskScores(
        title=title or task.name,
        task=task.name,
        profile=task.profile,
        directions=dict(task.directions),
        headline=tuple(task.headline),
        asked=len(result.items),
        scored=len(items),
        clusters=len({item.cluster for item in items}),
        conditions=tuple(conditions),
        failures=failures,
    )


def _status(answers: Answers) -> Status:
    if answers.silent:
        return "silent"
    return "scored" if any(r.ok for r in answers.records.values()) else "unanswered"


def _texts(answers: Answers) -> dict[str, str]:
    return {r.id: r.text for r in answers.records.values() if r.ok}


def _condition(answers: Answers, own: Score | None, change: Comparison | None) -> ConditionScores:
    given = [record for record in answers.records.values() if record.ok]
    return ConditionScores(
        label=answers.label,
        status=_status(answers),
        score=own,
        change=change,
        answered=len(given),
        errors=len(answers.records) - len(given),
        truncated=sum(record.finish == "length" for record in given),
        config_sha256=answers.manifest.get("config_sha256"),
        firing=answers.firing,
    )
