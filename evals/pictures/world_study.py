"""Studies in the painting world: made, judged from the files of their directory, opened again.

Their tasks know what they ask (``source``) and where their answers' files lie (``out``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regaze.evals.runs import files, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.results import RunResult, load
from regaze.evals.scoring.scored import Opened, Scored, write_scores


def judged(make: Callable[[World], object], task: Any, world: World | None) -> Scored | None:
    """Make what isn't on the disk yet, and judge all there is.

    Args:
        make: Makes the answers' files, as one of several processes.
        task: The task that they answer.
        world: The processes that share the work; default: this one alone.

    Returns:
        The scores, also written to the directory; in all processes but the first one None.

    Raises:
        ValueError: The directory holds another study.
        OSError: The directory can't be written.
    """
    world = world or World()
    with files.locked(task.out) if world.first else nullcontext():
        make(world)
        if not world.first:
            return None
        scored = opened(task).scored()
        write_scores(task.out, [scored])
    return scored


def source_fields(folder: Path, name: str) -> Mapping[str, Any]:
    """The fields that a study's source was made with.

    Args:
        folder: The study's directory.
        name: Name of the study's benchmark.

    Raises:
        ValueError: It isn't a study of that.
        OSError: A file can't be read.
    """
    fields = store.read_run(folder)["source"] or {}
    if fields.get("benchmark") != name:
        raise ValueError(f"{folder} is not a run of {name}")
    return {key: value for key, value in fields.items() if key != "benchmark"}


def opened(task: Any) -> Opened:
    """The content of a task's directory, to be scored or compared."""
    read = partial(_read, task)
    return Opened([task], [task.source.title], read(task.out), read)


def _read(task: Any, out: Path) -> RunResult:
    """A study's answers, their files named so that they are found from another one, too."""
    result = load(task, out)
    answers = [
        replace(
            one,
            records={
                key: replace(record, text=str(out.resolve() / record.text)) if record.ok else record
                for key, record in one.records.items()
            },
            by_seed={},
        )
        for one in result.answers
    ]
    return replace(result, answers=answers)
