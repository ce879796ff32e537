"""Put things at their places under several conditions and judge them: ``regaze eval places``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.evals.pictures import world_study
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.places.runner import run
from regaze.evals.places.task import NAME, Places, PlaceSource
from regaze.evals.runs import store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.scoring.scored import Opened, Scored


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
        conditions: The conditions to compare.
        source: The source of the placements.
        out: Directory of the study.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.places.runner.run`.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds other pictures.
        OSError: The directory can't be written.
    """

    def make(world: World) -> object:
        return run(loaded, conditions, source, out=out, world=world, **options)

    return world_study.judged(make, Places(source, out), world)


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a study of placements again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Placements have none.

    Raises:
        ValueError: It isn't a study of placements.
        OSError: A file can't be read.
    """
    fields = world_study.source_fields(folder, NAME)
    return world_study.opened(Places(store.restored(folder, PlaceSource, fields), folder))
