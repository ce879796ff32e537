"""What the commands about runs of questions share: how to ask, profiles, tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from regaze.cli import common
from regaze.cli.common import fail
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.registry import TEST_SPLITS, Source
from regaze.evals.reports import tables
from regaze.evals.reports.markdown import markdown
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import bars
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.study import Job, Scored, as_json, study

Profile = Annotated[
    list[str] | None, typer.Option(help="Scoring rules, e.g. official or opera. Repeatable.")
]


def on_test_splits(source: Source, out: Path) -> list[tuple[Source, Path]]:
    """A source on each of the sandbox's test splits, with its folder."""
    return [(replace(source, split=split), out / split) for split in TEST_SPLITS]


def ask(
    jobs: Sequence[Job],
    loaded: Loaded,
    conditions: Sequence[Condition],
    world: World | None = None,
    **options: Any,
) -> list[Scored]:
    """Ask and score, under bars that only the first process shows."""
    with bars(shown=world is None or world.first) as follow:
        return study(jobs, loaded, conditions, progress=follow, world=world, **options)


def all_scores(finished: Sequence[Scored]) -> list[TaskScores]:
    """All tables of all runs."""
    return [scores for run in finished for scores in run.scores]


def print_scores(scores: Sequence[TaskScores], as_json_: bool, as_markdown: bool) -> None:
    """Print scores as JSON, as Markdown or as tables."""
    if as_json_:
        typer.echo(json.dumps(as_json(scores), ensure_ascii=False))
    elif as_markdown:
        typer.echo(markdown(scores), nl=False)
    else:
        for one in scores:
            common.out.print(tables.render(one))


def exit_if_silent(scores: Sequence[TaskScores]) -> None:
    """End with code 1 if a method never fired."""
    silent = sorted({label for one in scores for label in one.silent})
    if silent:
        fail(f"never fired, so not reported: {', '.join(silent)}", 1)
