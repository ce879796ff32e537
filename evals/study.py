"""Run one model on several tasks, score what it said and write it all up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regaze.evals.benchmarks.source import Source
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.results import take
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scored import Scored, write_scores
from regaze.evals.task import Item, QuestionTask

if TYPE_CHECKING:
    from regaze.evals.asking.models import Loaded


@dataclass(frozen=True)
class Job:
    """A task to run.

    Attributes:
        source: The task's source.
        tasks: The task under each profile; the first one is asked.
        out: Directory of the run.
    """

    source: Source
    tasks: Sequence[QuestionTask]
    out: Path


def prepare(source: Source, out: Path, limit: int | None = None) -> Job:
    """Read a task's data.

    Raises:
        ValueError: The data don't fit, or ask about a single image, which allows no interval.
        OSError: A file is missing or can't be read, or none of the images can.
    """
    tasks = source.tasks()
    items = take(tasks[0].items, limit)
    if len({item.cluster for item in items}) < 2:
        raise ValueError(
            f"{source.title} would ask about a single image, and intervals need at least two: "
            "raise --limit or --n-images"
        )
    _check_images(tasks[0], items)
    return Job(source, tasks, out)


def _check_images(task: QuestionTask, items: Sequence[Item]) -> None:
    """Read one image. One that is missing costs its questions; without any, nothing is asked."""
    shown = {item.image: item for item in items if item.image is not None}
    first = None
    for item in shown.values():
        try:
            task.load_image(item)
            return
        except OSError as error:
            first = first or error
    if first is not None:
        raise OSError(f"none of the {len(shown)} images can be read; the first: {first}")


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
        conditions: The conditions to compare.
        progress: Gives the callback of a task, by its title.
        seed: For the bootstrap.
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
        with files.locked(job.out) if world.first else nullcontext():
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
