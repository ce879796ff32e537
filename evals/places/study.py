"""Put things at their places under several conditions and judge them: ``regaze eval places``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.places.runner import run
from regaze.evals.places.task import NAME, Places, PlaceSource
from regaze.evals.runs import files, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.results import RunResult, load
from regaze.evals.scoring.scored import Opened, Scored, write_scores


def run_places(
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    source: PlaceSource,
    *,
    out: Path,
    world: World | None = None,
    **options: Any,
) -> Scored | None:
    """Paint and judge all placements under all conditions, or what isn't on the disk yet.

    Of several processes only the first one judges; the others get None.

    Args:
        loaded: One of the painting world's painters.
        conditions: What to compare.
        source: Which placements.
        out: Directory of the study.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.places.runner.run`.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds other pictures.
        OSError: The directory can't be written.
    """
    world = world or World()
    with files.locked(out) if world.first else nullcontext():
        run(loaded, conditions, source, out=out, world=world, **options)
        if not world.first:
            return None
        scored = _opened(Places(source, out)).scored()
        write_scores(out, [scored])
    return scored


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a study of placements again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Placements have none.

    Raises:
        ValueError: It isn't a study of placements.
        OSError: A file can't be read.
    """
    fields = store.read_run(folder)["source"] or {}
    if fields.get("benchmark") != NAME:
        raise ValueError(f"{folder} is not a study of placements")
    known = {key: value for key, value in fields.items() if key != "benchmark"}
    return _opened(Places(store.restored(folder, PlaceSource, known), folder))


def _opened(task: Places) -> Opened:
    read = partial(_read, task)
    return Opened([task], [task.source.title], read(task.out), read)


def _read(task: Places, out: Path) -> RunResult:
    """A study's answers, their pictures named so that they are found from another one, too."""
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
