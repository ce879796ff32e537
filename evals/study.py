"""Run one model on several tasks, score what it said and write it all up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regaze.evals.benchmarks.registry import Source
from regaze.evals.runs import records
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.results import RUN, RunResult, load, take
from regaze.evals.scoring.compare import to_json
from regaze.evals.scoring.scores import TaskScores, score_run
from regaze.evals.task import Task

if TYPE_CHECKING:
    from regaze.evals.asking.models import Loaded

SCORES = "scores.json"


@dataclass(frozen=True)
class Job:
    """A task to run.

    Attributes:
        source: What the task is built from.
        tasks: The task under each profile; the first one is asked.
        out: Directory of the run.
    """

    source: Source
    tasks: Sequence[Task]
    out: Path


@dataclass(frozen=True)
class Scored:
    """A run and its scores, one entry per profile."""

    result: RunResult
    scores: Sequence[TaskScores]


@dataclass(frozen=True)
class Opened:
    """A run that was read again; the first task is the one that was asked."""

    source: Source
    tasks: Sequence[Task]
    result: RunResult


def prepare(source: Source, out: Path, limit: int | None = None) -> Job:
    """Read a task's data.

    Raises:
        ValueError: The data don't fit, or ask about a single image, which allows no interval.
        OSError: A file is missing or can't be read.
    """
    tasks = source.tasks()
    if len({item.cluster for item in take(tasks[0].items, limit)}) < 2:
        raise ValueError(
            f"{source.title} would ask about a single image, and intervals need at least two: "
            "raise --limit or --n-images"
        )
    return Job(source, tasks, out)


def study(
    jobs: Sequence[Job],
    loaded: Loaded,
    conditions: Sequence[Condition],
    *,
    progress: Callable[[str], Progress],
    seed: int = 0,
    world: World | None = None,
    **options: Any,
) -> list[Scored]:
    """Ask, score and write the scores of each run beside its answers.

    Of several processes only the first one scores; the others get an empty list.

    Args:
        jobs: The tasks.
        loaded: The model.
        conditions: What to compare.
        progress: Gives the callback of a task, by its title.
        seed: Of the bootstrap.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.asking.runner.run`.

    Raises:
        ValueError: A condition doesn't fit the model, or a directory holds other answers.
        OSError: A directory can't be written.
    """
    # Reading a run again needs no model, and shouldn't wait for torch.
    from regaze.evals.asking.runner import run

    world = world or World()
    finished = []
    for job in jobs:
        title = job.source.title
        result = run(
            job.tasks[0],
            loaded.model,
            loaded.processor,
            conditions,
            out=job.out,
            identity=loaded.identity,
            source=job.source.noted(),
            progress=progress(title),
            world=world,
            **options,
        )
        if not world.first:
            continue
        scores = [
            score_run(result, task=task, title=job.source.title_of(task), seed=seed)
            for task in job.tasks
        ]
        finished.append(Scored(result, scores))
        write_scores(job.out, finished[-1:])
    return finished


def write_scores(out: Path, runs: Sequence[Scored]) -> None:
    """Write the scores of one or more runs into one file.

    Raises:
        OSError: It can't be written.
    """
    scores = [scores for run in runs for scores in run.scores]
    records.write_json(out / SCORES, as_json(scores))


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
    for path in run_files(out):
        kind = (records.read_json(path)["source"] or {}).get("benchmark")
        # They are built on this module.
        if kind == "images":
            from regaze.evals.pictures import study as pictures

            found.append(pictures.reopen(path.parent, seed))
            continue
        if kind == "video":
            from regaze.evals.clips import study as clips

            found.append(clips.reopen(path.parent, seed=seed))
            continue
        one = open_run(path.parent, profiles)
        scores = [
            score_run(one.result, task=task, title=one.source.title_of(task), seed=seed)
            for task in one.tasks
        ]
        found.append(Scored(one.result, scores))
    return found


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a run of questions and build its task again.

    Args:
        folder: The run's directory.
        profiles: Other scoring rules for the stored answers; default: those of the run.

    Raises:
        ValueError: It doesn't say what was asked, or its data have changed.
        OSError: Its data are gone.
    """
    path = folder / RUN
    fields = records.read_json(path)["source"]
    if fields is None:
        raise ValueError(f"{path} doesn't say where its task came from: score it in Python")
    if fields.get("benchmark") in ("images", "video"):
        raise ValueError(f"{path} is no run of a benchmark with questions")
    source = Source.from_dict(fields)
    tasks = source.tasks()
    result = load(tasks[0], folder)
    if profiles:
        # The same answers may be scored with several truths.
        truths = [task for task in tasks if task.profile == tasks[0].profile]
        tasks = [task.under(profile) for task in truths for profile in profiles]
    return Opened(source, tasks, result)


def run_files(out: Path) -> list[Path]:
    """The files that mark run directories, in a directory and below.

    Raises:
        ValueError: There is none.
    """
    found = sorted(out.rglob(RUN))
    if not found:
        raise ValueError(f"{out} holds no run: no {RUN} in it or below")
    return found


def as_json(scores: Sequence[TaskScores]) -> dict[str, Any]:
    """Scores as JSON-able values with full precision."""
    return {
        "note": "shares are between 0 and 1; null: undefined, a denominator is zero",
        "tasks": to_json(list(scores)),
    }
