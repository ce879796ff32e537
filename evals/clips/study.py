"""Paint clips under several conditions and measure them: ``regaze eval video``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regaze.evals.clips.runner import run
from regaze.evals.clips.task import NAME, Clips, Plan
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.runs import records
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.results import RUN, load
from regaze.evals.scoring.scores import score_run
from regaze.evals.study import Scored, write_scores


def run_video(
    pipeline: Any,
    conditions: Sequence[Condition],
    plan: Plan,
    *,
    out: Path,
    scorers: Sequence[Scorer] = (),
    **options: Any,
) -> Scored:
    """Paint and measure all clips under all conditions, or what isn't on the disk yet.

    Args:
        pipeline: A ControlNet pipeline of the painting world, see `sandbox.video.pipeline`.
        conditions: What to compare.
        plan: Which clips.
        out: Directory of the study.
        scorers: See `reopen`.
        **options: See `regaze.evals.clips.runner.run`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A condition doesn't fit the pipeline, or the directory holds other clips.
        OSError: The directory can't be written.
    """
    task = Clips(plan, out, scorers)
    run(pipeline, conditions, plan, out=out, **options)
    return _scored(task)


def reopen(out: Path, scorers: Sequence[Scorer] = (), seed: int = 0) -> Scored:
    """Measure the strips of a study again, finished or not, without a pipeline.

    Args:
        out: The study's directory.
        scorers: Of pictures, beside the measures; see `regaze.evals.clips.task.Clips`.
        seed: Of the bootstrap.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: It isn't a study of clips, holds too little to score, or a scorer's weights are
            missing.
        OSError: A strip is gone.
    """
    path = out / RUN
    fields = records.read_json(path)["source"] if path.exists() else None
    if not fields or fields.get("benchmark") != NAME:
        raise ValueError(f"{out} is not a study of clips")
    return _scored(Clips(Plan.from_dict(fields), out, scorers), seed)


def _scored(task: Clips, seed: int = 0) -> Scored:
    result = load(task, task.out)
    scored = Scored(
        result, [score_run(result, title="Clips, errors in grey levels of 255", seed=seed)]
    )
    write_scores(task.out, [scored])
    return scored
