"""Run one model on several tasks, score what it said and write it all up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals import records
from regaze.evals.benchmarks import Source, find
from regaze.evals.compare import to_json
from regaze.evals.conditions import Condition
from regaze.evals.models import Loaded
from regaze.evals.runner import RUN, Progress, RunResult, load, run, take
from regaze.evals.scores import TaskScores, score_run

SCORES = "scores.json"


@dataclass(frozen=True)
class Scored:
    """A run and its scores, one entry per profile."""

    result: RunResult
    scores: Sequence[TaskScores]


def study(
    sources: Sequence[tuple[Source, Path]],
    loaded: Loaded,
    conditions: Sequence[Condition],
    *,
    progress: Callable[[str], Progress],
    seed: int = 0,
    limit: int | None = None,
    **options: Any,
) -> list[Scored]:
    """Ask, score and write the scores of each run beside its answers.

    Args:
        sources: Tasks and the directories of their runs.
        loaded: The model.
        conditions: What to compare.
        progress: Gives the callback of a task, by its title.
        seed: Of the bootstrap.
        limit: Ask only so many items of each task, see `regaze.evals.runner.take`.
        **options: See `regaze.evals.runner.run`.

    Raises:
        ValueError: Something doesn't fit; all data are read before the first answer.
        OSError: A file can't be read or written.
    """
    built = [(source, out, source.tasks()) for source, out in sources]
    for source, _, tasks in built:
        if len({item.cluster for item in take(tasks[0].items, limit)}) < 2:
            raise ValueError(
                f"{source.title} would ask about a single image, and intervals need at least two: "
                "raise --limit or --n-images"
            )
    finished = []
    for source, out, tasks in built:
        result = run(
            tasks[0],
            loaded.model,
            loaded.processor,
            conditions,
            out=out,
            identity=loaded.identity,
            source=source.to_dict(),
            limit=limit,
            progress=progress(source.title),
            **options,
        )
        scores = [score_run(result, task=task, title=source.title, seed=seed) for task in tasks]
        records.write_json(out / SCORES, as_json(scores))
        finished.append(Scored(result, scores))
    return finished


def reopen(out: Path, profiles: Sequence[str] = (), seed: int = 0) -> list[Scored]:
    """Score the runs in a directory again, finished or not, without a model.

    Args:
        out: A run's directory or one above several.
        profiles: Other scoring rules for the stored answers; default: those of the run.
        seed: Of the bootstrap.

    Raises:
        ValueError: There is no run, or its data have changed.
        OSError: Its data are gone.
    """
    found = []
    for path in sorted(out.rglob(RUN)):
        fields = records.read_json(path)["source"]
        if fields is None:
            raise ValueError(f"{path} doesn't say where its task came from: score it in Python")
        source = Source.from_dict(fields)
        tasks = source.tasks()
        result = load(tasks[0], path.parent)
        if profiles:
            tasks = [find(source.benchmark).under(tasks[0], profile) for profile in profiles]
        scores = [score_run(result, task=task, title=source.title, seed=seed) for task in tasks]
        found.append(Scored(result, scores))
    if not found:
        raise ValueError(f"{out} holds no run: no {RUN} in it or below")
    return found


def as_json(scores: Sequence[TaskScores]) -> dict[str, Any]:
    """Scores as JSON-able values with full precision."""
    return {
        "note": "shares are between 0 and 1; null: undefined, a denominator is zero",
        "tasks": to_json(list(scores)),
    }
