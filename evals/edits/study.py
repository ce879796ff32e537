"""Edit pictures under several conditions and judge them: ``regaze eval edits``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.evals.edits.runner import run
from regaze.evals.edits.task import NAME, Edits, EditSource
from regaze.evals.pictures import world_study
from regaze.evals.runs import store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.scoring.scored import Opened, Scored


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
        conditions: The conditions to compare.
        source: The source of the edits.
        out: Directory of the study.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.edits.runner.run`.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds other edits.
        OSError: The directory can't be written.
    """

    def make(world: World) -> object:
        return run(pipeline, conditions, source, out=out, world=world, **options)

    return world_study.judged(make, Edits(source, out), world)


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a study of edits again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Edits have none.

    Raises:
        ValueError: It isn't a study of edits.
        OSError: A file can't be read.
    """
    fields = world_study.source_fields(folder, NAME)
    return world_study.opened(Edits(store.restored(folder, EditSource, fields), folder))
