"""Score a run: every condition by itself, and against the unedited model on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.scoring.compare import Comparison, Score, assessed
from regaze.evals.scoring.kept import kept
from regaze.evals.scoring.scores import ConditionScores, Status, TaskScores
from regaze.evals.scoring.statistics import DRAWS, holm
from regaze.evals.scoring.tallies import System, Tallies
from regaze.evals.scoring.thresholds import AUC, DIRECTIONS
from regaze.evals.task import Item, QuestionTask, Task


def score_run(
    result: RunResult,
    *,
    task: Task | None = None,
    title: str | None = None,
    controls: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskScores:
    """Score what a run has answered so far.

    Args:
        result: The run.
        task: The same questions or some of them under another profile or with another truth;
            default: the run's own task.
        title: Default: the task's name.
        controls: The controls among the conditions, each with its kind; default: as the run notes.
        draws: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Nothing is answered by all conditions yet, or only one image is.
    """
    task = task or result.task
    live = [a for a in result.answers if _status(a) == "scored"]
    # A task of the same questions may leave some out, or know another truth.
    known = {item.id: item for item in task.items}
    asked = [known[item.id] for item in result.items if item.id in known]
    items = [item for item in asked if all(_answered(a, item) for a in live)]
    failures = {
        record.id: record.error
        for answers in result.answers
        for records in answers.by_seed.values()
        for record in records.values()
        if record.error is not None
    }
    if not live or not items:
        why = f": {next(iter(failures.values()))}" if failures else ""
        raise ValueError(f"{result.out} has no item that every condition has answered{why}")
    table = Tallies(task, items, [system_of(a) for a in live])
    found = kept(result.out, table, draws, seed, lambda: assessed(table, draws=draws, seed=seed))
    if controls is None:
        controls = result.controls
    scored = {
        answers.label: (own, change if answers is not live[0] else None)
        for answers, (own, change) in zip(live, found, strict=True)
    }
    tested = [label for label, (_, change) in scored.items() if change and label not in controls]
    adjusted = _adjusted([change for label in tested if (change := scored[label][1])])
    scored |= {
        label: (scored[label][0], change) for label, change in zip(tested, adjusted, strict=True)
    }
    ranks = DIRECTIONS if AUC in next(iter(found[0][0].sections.values())) else {}
    return TaskScores(
        title=title or task.name,
        task=task.name,
        profile=task.profile,
        directions={**task.directions, **ranks},
        headline=tuple(task.headline),
        absolute=tuple(task.absolute),
        yes_no=isinstance(task, QuestionTask) and task.yes_no,
        seeds=len(live[0].by_seed),
        asked=len(asked),
        scored=len(items),
        clusters=len({item.cluster for item in items}),
        units=task.units,
        conditions=tuple(
            _condition(
                a, controls.get(a.label), _apart(result, a), *scored.get(a.label, (None, None))
            )
            for a in result.answers
        ),
        failures=failures,
    )


def _adjusted(changes: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values adjusted by Holm's method.

    For each metric, all conditions on all groups are one family of tests; a total is another one
    of its own, because it repeats what its groups say.
    """
    if not changes:
        return []
    groups = list(changes[0].groups)
    families = [groups, *([total] for total in changes[0].totals)]
    adjusted = [dict(change.sections) for change in changes]
    for family in families:
        cells = [(sections, name) for sections in adjusted for name in family]
        for metric in adjusted[0][family[0]].metrics:
            raw = [sections[name].metrics[metric].p for sections, name in cells]
            for (sections, name), p in zip(cells, holm(raw), strict=True):
                group = sections[name]
                moved = replace(group.metrics[metric], p_holm=p if len(cells) > 1 else None)
                sections[name] = replace(group, metrics={**group.metrics, metric: moved})
    return [
        replace(
            change,
            groups={name: sections[name] for name in change.groups},
            totals={name: sections[name] for name in change.totals},
        )
        for change, sections in zip(changes, adjusted, strict=True)
    ]


def _status(answers: Answers) -> Status:
    if answers.silent:
        return "silent"
    given = (record for records in answers.by_seed.values() for record in records.values())
    return "scored" if any(record.ok for record in given) else "unanswered"


def _answered(answers: Answers, item: Item) -> bool:
    """True if there is an answer under every seed."""
    by_seed = answers.by_seed.values()
    return all(item.id in records and records[item.id].ok for records in by_seed)


def system_of(answers: Answers) -> System:
    """A condition's answers and, for yes/no questions, their margins."""
    margins = {key: record.margin for key, record in answers.records.items()}
    return System(
        [
            {key: record.text for key, record in records.items() if record.ok}
            for _, records in sorted(answers.by_seed.items())
        ],
        {key: margin for key, margin in margins.items() if margin is not None},
    )


def _apart(result: RunResult, answers: Answers) -> str | None:
    """The objection of a condition's interventions to sharing an image's prefix."""
    found: str | None = answers.manifest.get("apart")
    return found if found != result.answers[0].manifest.get("apart") else None


def _condition(
    answers: Answers,
    control: str | None,
    apart: str | None,
    own: Score | None,
    change: Comparison | None,
) -> ConditionScores:
    records = [record for by_id in answers.by_seed.values() for record in by_id.values()]
    given = [record for record in records if record.ok]
    return ConditionScores(
        label=answers.label,
        control=control,
        status=_status(answers),
        score=own,
        change=change,
        answered=len(given),
        errors=len(records) - len(given),
        truncated=sum(record.finish == "length" for record in given),
        config_sha256=answers.manifest.get("config_sha256"),
        firing=answers.firing,
        apart=apart,
        cost=answers.cost,
    )
