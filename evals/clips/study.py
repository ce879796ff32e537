"""Paint clips under several conditions and measure them: ``regaze eval video``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.evals.clips.runner import run
from regaze.evals.clips.task import NAME, Clips, ClipSource
from regaze.evals.pictures import world_study
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.runs import store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.scoring.scored import Opened, Scored


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
        conditions: The conditions to compare.
        source: The source of the clips.
        out: Directory of the study.
        scorers: Scorers of pictures, beside the measures; see `regaze.evals.clips.task.Clips`.
        world: The processes that share the work; default: this one alone.
        **options: See `regaze.evals.clips.runner.run`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A condition doesn't fit the pipeline, a scorer's weights are missing, or the
            directory holds other clips.
        OSError: The directory can't be written.
    """

    def make(world: World) -> object:
        return run(pipeline, conditions, source, out=out, world=world, **options)

    return world_study.judged(make, Clips(source, out, scorers), world)


def open_run(folder: Path, profiles: Sequence[str] = (), scorers: Sequence[Scorer] = ()) -> Opened:
    """Read a study of clips again, finished or not, without a pipeline.

    Args:
        folder: The study's directory.
        profiles: Clips have none.
        scorers: Scorers of pictures, beside the measures; see `regaze.evals.clips.task.Clips`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: It isn't a study of clips, or a scorer's weights are missing.
        OSError: A file can't be read.
    """
    fields = world_study.source_fields(folder, NAME)
    return world_study.opened(Clips(store.restored(folder, ClipSource, fields), folder, scorers))
