"""Paint clips under several conditions and measure them: ``regaze eval video``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regaze.evals.clips.runner import run
from regaze.evals.clips.task import NAME, Clips, ClipSource
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.runs import files, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.results import RunResult, load
from regaze.evals.scoring.scored import Opened, Scored, write_scores


def run_video(
    pipeline: Any,
    conditions: Sequence[Condition],
    source: ClipSource,
    *,
    out: Path,
    scorers: Sequence[Scorer] = (),
    world: World | None = None,
    **options: Any,
) -> Scored | None:
    """Paint and measure all clips under all conditions, or what isn't on the disk yet.

    Of several processes only the first one measures; the others get None.

    Args:
        pipeline: A ControlNet pipeline of the painting world, see `sandbox.video.pipeline`.
        conditions: What to compare.
        source: Which clips.
        out: Directory of the study.
        scorers: Of pictures, beside the measures; see `regaze.evals.clips.task.Clips`.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.clips.runner.run`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A condition doesn't fit the pipeline, a scorer's weights are missing, or the
            directory holds other clips.
        OSError: The directory can't be written.
    """
    world = world or World()
    task = Clips(source, out, scorers)
    with files.locked(out) if world.first else nullcontext():
        run(pipeline, conditions, source, out=out, world=world, **options)
        if not world.first:
            return None
        scored = _opened(task).scored()
        write_scores(out, [scored])
    return scored


def open_run(folder: Path, profiles: Sequence[str] = (), scorers: Sequence[Scorer] = ()) -> Opened:
    """Read a study of clips again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Clips have none.
        scorers: Of pictures, beside the measures; see `regaze.evals.clips.task.Clips`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: It isn't a study of clips, or a scorer's weights are missing.
        OSError: A file can't be read.
    """
    fields = store.read_run(folder)["source"] or {}
    if fields.get("benchmark") != NAME:
        raise ValueError(f"{folder} is not a study of clips")
    known = {key: value for key, value in fields.items() if key != "benchmark"}
    return _opened(Clips(store.restored(folder, ClipSource, known), folder, scorers))


def _opened(task: Clips) -> Opened:
    read = partial(_read, task)
    return Opened([task], [task.source.title], read(task.out), read)


def _read(task: Clips, out: Path) -> RunResult:
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
