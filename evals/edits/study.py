"""Edit pictures under several conditions and judge them: ``regaze eval edits``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regaze.evals.edits.runner import run
from regaze.evals.edits.task import NAME, Edits, EditSource
from regaze.evals.runs import files, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.results import RunResult, load
from regaze.evals.scoring.scored import Opened, Scored, write_scores


def run_edits(
    pipeline: Any,
    conditions: Sequence[Condition],
    source: EditSource,
    *,
    out: Path,
    world: World | None = None,
    **options: Any,
) -> Scored | None:
    """Make and judge all edits under all conditions, or what isn't on the disk yet.

    Of several processes only the first one judges; the others get None.

    Args:
        pipeline: The painting world's painter with joint attention.
        conditions: What to compare.
        source: Which edits.
        out: Directory of the study.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.edits.runner.run`.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds other edits.
        OSError: The directory can't be written.
    """
    world = world or World()
    with files.locked(out) if world.first else nullcontext():
        run(pipeline, conditions, source, out=out, world=world, **options)
        if not world.first:
            return None
        scored = _opened(Edits(source, out)).scored()
        write_scores(out, [scored])
    return scored


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a study of edits again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Edits have none.

    Raises:
        ValueError: It isn't a study of edits.
        OSError: A file can't be read.
    """
    fields = store.read_run(folder)["source"] or {}
    if fields.get("benchmark") != NAME:
        raise ValueError(f"{folder} is not a study of edits")
    known = {key: value for key, value in fields.items() if key != "benchmark"}
    return _opened(Edits(store.restored(folder, EditSource, known), folder))


def _opened(task: Edits) -> Opened:
    read = partial(_read, task)
    return Opened([task], [task.source.title], read(task.out), read)


def _read(task: Edits, out: Path) -> RunResult:
    """A study's answers, their strips named so that they are found from another one, too."""
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
