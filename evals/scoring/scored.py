"""A run with its scores, and a run that was opened again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regaze.evals.runs import files
from regaze.evals.runs.results import RunResult
from regaze.evals.scoring.compare import to_json
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.task import Task

SCORES = "scores.json"


@dataclass(frozen=True)
class Scored:
    """A run and its scores, one entry per profile."""

    result: RunResult
    scores: Sequence[TaskScores]


@dataclass(frozen=True)
class Opened:
    """A run that was read again.

    Attributes:
        tasks: The task under each profile; the first one is the one that was done.
        titles: The name of each for readers.
        result: The run's answers, as the tasks score them.
        read: Reads those of another run of the task likewise.
    """

    tasks: Sequence[Task]
    titles: Sequence[str]
    result: RunResult
    read: Callable[[Path], RunResult]

    def scored(self, seed: int = 0) -> Scored:
        """Score it.

        Args:
            seed: For the bootstrap.
        """
        scores = [
            score_run(self.result, task=task, title=title, seed=seed)
            for task, title in zip(self.tasks, self.titles, strict=True)
        ]
        return Scored(self.result, scores)


def write_scores(out: Path, runs: Sequence[Scored]) -> None:
    """Write the scores of one or more runs into one file.

    Raises:
        OSError: It can't be written.
    """
    scores = [scores for run in runs for scores in run.scores]
    files.write_json(out / SCORES, as_json(scores))


def as_json(scores: Sequence[TaskScores]) -> dict[str, Any]:
    """Scores as JSON-able values with full precision."""
    return {
        "note": "shares are between 0 and 1; null: undefined, a denominator is zero",
        "tasks": to_json(list(scores)),
    }
