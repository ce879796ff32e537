"""Paint, score and write up: what ``regaze eval images`` does, and reading it again."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from regaze.evals.pictures import grid
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.runner import run
from regaze.evals.pictures.scorers import Scorer, SetScorer
from regaze.evals.pictures.scorers.sets import SetScore
from regaze.evals.pictures.stored import (
    PictureSource,
    open_run,
    read_scores,
    read_source,
    scores_file,
    single,
)
from regaze.evals.pictures.task import Pictures, open_picture
from regaze.evals.runs import files, lines
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import Answers, RunResult, load, take
from regaze.evals.scoring.compare import to_json
from regaze.evals.scoring.scored import Scored, write_scores
from regaze.evals.task import Counts, Item

SAMPLES = "samples.png"
SETS = "sets.json"
_BATCH = 16


@dataclass(frozen=True)
class Finished:
    """A run that was painted and scored.

    Attributes:
        scored: The run's scores.
        sets: Scores of each condition's set of pictures.
        samples: A grid of some pictures; None if all of them were held back.
    """

    scored: Scored
    sets: Mapping[str, Sequence[SetScore]]
    samples: Path | None


def run_images(
    source: PictureSource,
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    arguments: Mapping[str, Any],
    *,
    out: Path,
    sets: Sequence[SetScorer] = (),
    device: str = "cpu",
    follow: Callable[[str], Progress] = lambda title: quiet,
    world: World | None = None,
    **options: Any,
) -> Finished | None:
    """Paint, score and draw samples, or do what of that isn't on the disk yet.

    Of several processes only the first one scores; the others get None.

    Args:
        source: The prompts to paint and the scorers.
        loaded: The pipeline.
        conditions: The conditions to compare.
        arguments: Arguments of the pipeline's call.
        out: Directory of the run.
        sets: Scorers of sets of pictures.
        device: The scorers' device.
        follow: Gives the callback of a part of the work, by its title.
        world: The processes that share the painting; default: this one alone.
        **options: See `regaze.evals.pictures.runner.run`.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A condition or an argument doesn't fit, or the directory holds other pictures.
        OSError: The directory can't be written.
    """
    world = world or World()
    # Nobody else writes between painting and scoring.
    with files.locked(out) if world.first else nullcontext():
        result = run(
            source.task,
            loaded,
            conditions,
            arguments,
            out=out,
            source=source.to_dict(),
            progress=follow(loaded.name),
            world=world,
            **options,
        )
        if not world.first:
            return None
        samples = draw_samples(result)
        scored = score(out, device=device, progress=follow("scores"))
        return Finished(scored, score_sets(sets, result, device=device) if sets else {}, samples)


def check_references(source: PictureSource) -> None:
    """Check that there is a reference for every picture, where references are given.

    Raises:
        OSError: There isn't; the message names the files that are looked for.
    """
    if source.references is not None:
        task = source.task
        for item in task.items:
            _reference(task, item, source.references)


def score(
    out: Path,
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> Scored:
    """Score all pictures that have no score yet, and write the scores beside them.

    Args:
        out: The run's directory, which says what to score by.
        device: The scorers' device.
        seed: For the bootstrap.
        progress: Called with a scorer's name, pictures done and pictures in all.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A scorer's weights are missing, or there is no picture to score.
        OSError: A picture or a reference is gone.
    """
    with files.locked(out):
        source = read_source(out)
        result = load(source.task, out)
        for label in source.scorers:
            _score_all(single(label), source, result, device, progress)
        scored = open_run(out).scored(seed)
        write_scores(out, [scored])
    return scored


def score_sets(
    given: Sequence[SetScorer], result: RunResult, *, device: str = "cpu"
) -> dict[str, list[SetScore]]:
    """Scores of each condition's set of pictures, over the items that all conditions painted.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A reference or weights are missing, or the sets are too small.
    """
    done = [i for i in result.items if all(_painted(a, i) for a in result.answers)]
    found: dict[str, list[SetScore]] = {}
    for answers in result.answers:
        with tempfile.TemporaryDirectory() as folder:
            for number, item in enumerate(done):
                path = (answers.folder / answers.records[item.id].text).resolve()
                (Path(folder) / f"{number:06d}.png").symlink_to(path)
            found[answers.label] = [one.measure(Path(folder), device) for one in given]
    files.write_json(result.out / SETS, to_json(found))
    return found


def draw_samples(result: RunResult, n: int = 8) -> Path | None:
    """Draw the first prompts of every group with their first seed, a column per condition.

    Args:
        result: As `regaze.evals.pictures.runner.run` gives it.
        n: Number of prompts.

    Returns:
        The PNG's path; None if all these pictures were held back.

    Raises:
        OSError: A picture is gone, or the grid can't be written.
    """
    first = list({item.cluster: item for item in reversed(result.items)}.values())[::-1]
    kept = [item for item in take(first, n) if any(_painted(a, item) for a in result.answers)]
    if not kept:
        return None

    def cell(answers: Answers, item: Item) -> Image.Image | None:
        return _open(item, answers) if _painted(answers, item) else None

    blocks = [
        grid.Block(
            item.prompt,
            [f"seed {item.id.rpartition('/')[2]}"],
            [[cell(a, item) for a in result.answers]],
        )
        for item in kept
    ]
    path = result.out / SAMPLES
    made = {answers.label: answers.manifest["config"] for answers in result.answers}
    with files.replacing(path) as part:
        grid.save_png(part, grid.draw([a.label for a in result.answers], blocks), made)
    return path


def _score_all(
    scorer: Scorer, source: PictureSource, result: RunResult, device: str, progress: Progress
) -> None:
    """Score what one scorer hasn't scored yet, condition by condition."""
    ready = scorer.load(device)
    baseline = result.answers[0]
    stamp = files.digest([ready.identity, source.references if scorer.compares else None])
    for answers in result.answers:
        path = scores_file(answers, source, scorer.label)
        known = read_scores(path, stamp)
        items = [item for item in result.items if _painted(answers, item)]
        if scorer.compares and source.references is None:
            items = [item for item in items if _painted(baseline, item)]
        todo = [item for item in items if item.id not in known]
        path.parent.mkdir(exist_ok=True)
        lines.repair(path)
        if not path.exists() or not path.stat().st_size:
            lines.append(path, [{"scorer": stamp}])
        label = f"{scorer.name}, {answers.label}"
        progress(label, len(items) - len(todo), len(items))
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            images = [_open(item, answers) for item in batch]
            references = _references(batch, source, result) if scorer.compares else images
            counts = ready.score(images, [item.prompt for item in batch], references)
            lines.append(path, map(_row, batch, counts))
            progress(label, len(items) - len(todo) + start + len(batch), len(items))


def _references(
    batch: Sequence[Item], source: PictureSource, result: RunResult
) -> list[Image.Image]:
    if source.references is None:
        return [_open(item, result.answers[0]) for item in batch]
    found = []
    for item in batch:
        found.append(open_picture(_reference(cast(Pictures, result.task), item, source.references)))
    return found


def _reference(task: Pictures, item: Item, folder: str) -> Path:
    """One reference per picture, or one per prompt."""
    names = task.references(item)
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--references: there is no folder {folder}")
    path = next((path for name in names if (path := Path(folder) / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"no reference for {item.id}: {folder} holds neither {names[0]} nor {names[1]}"
        )
    return path


def _open(item: Item, answers: Answers) -> Image.Image:
    return open_picture(answers.folder / answers.records[item.id].text)


def _painted(answers: Answers, item: Item) -> bool:
    return item.id in answers.records and answers.records[item.id].ok


def _row(item: Item, counts: Counts) -> dict[str, Any]:
    return {"id": item.id, "counts": {k: None if math.isnan(v) else v for k, v in counts.items()}}
