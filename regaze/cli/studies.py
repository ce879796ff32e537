"""Common parts of the commands that ask questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regaze.cli.terminal import resumable

if TYPE_CHECKING:
    from regaze.evals.asking.models import Loaded
    from regaze.evals.benchmarks.source import Source
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.runs.distributed import World
    from regaze.evals.scoring.scored import Scored
    from regaze.evals.scoring.scores import TaskScores
    from regaze.evals.study import Job


def on_test_splits(source: Source, out: Path) -> list[tuple[Source, Path]]:
    """A source on each of its world's test splits, with its folder."""
    from regaze.evals.benchmarks.worlds import world_of

    tests = world_of(source.split).tests
    return [(replace(source, split=split), out / split) for split in tests]


def ask(
    jobs: Sequence[Job],
    loaded: Loaded,
    conditions: Sequence[Condition],
    *,
    out: Path,
    world: World | None = None,
    **options: Any,
) -> list[Scored]:
    """Ask and score, under bars that only the first process shows."""
    from regaze.evals.runs.progress import bars
    from regaze.evals.study import study

    with resumable(out), bars(shown=world is None or world.first) as follow:
        return study(jobs, loaded, conditions, progress=follow, world=world, **options)


def tables_of(finished: Sequence[Scored]) -> list[TaskScores]:
    """All tables of all runs."""
    return [scores for run in finished for scores in run.scores]
