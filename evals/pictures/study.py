"""Paint, score and write up: what ``regaze eval images`` does, and reading it again."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.pictures import grid, scorers
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.scorers import Scorer, SetScorer
from regaze.evals.pictures.scorers.sets import SetScore
from regaze.evals.pictures.task import NAME, Pictures, open_picture
from regaze.evals.runs import lines, records
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.results import RUN, Answers, RunResult, load, take
from regaze.evals.scoring.compare import to_json
from regaze.evals.scoring.scores import score_run
from regaze.evals.study import Scored, write_scores
from regaze.evals.task import Counts, Item

SAMPLES = "samples.png"
SETS = "sets.json"
_FOLDER = "scores"
_BATCH = 16


@dataclass(frozen=True)
class Plan:
    """What a run paints and how it is scored; kept in its directory.

    Attributes:
        prompts: What to paint.
        seeds: Of the noise.
        scorers: Labels of the scorers of single pictures.
        references: Folder of pictures to compare with, named like the run's own; None compares
            with the unedited pipeline's.
    """

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    scorers: tuple[str, ...]
    references: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return {"benchmark": NAME, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave."""
        return cls(
            tuple(Prompt(**one) for one in fields["prompts"]),
            tuple(fields["seeds"]),
            tuple(fields["scorers"]),
            fields["references"],
        )

    @property
    def task(self) -> Pictures:
        """The task, with its scorers."""
        return Pictures(self.prompts, self.seeds, [_single(label) for label in self.scorers])


def read_plan(out: Path) -> Plan:
    """What a run's directory says of what it paints and how it is scored.

    Raises:
        ValueError: It isn't a run of pictures.
    """
    if not (out / RUN).exists():
        raise ValueError(f"{out} is not a run directory: it has no {RUN}")
    fields = records.read_json(out / RUN)["source"]
    if not fields or fields.get("benchmark") != NAME:
        raise ValueError(f"{out} is not a run of pictures")
    return Plan.from_dict(fields)


def check_references(plan: Plan) -> None:
    """Check that there is a reference for every picture, where references are given.

    Raises:
        OSError: There isn't; the message names the files that are looked for.
    """
    for item in plan.task.items if plan.references is not None else ():
        _reference(item, Path(plan.references))


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
        device: Where scorers compute.
        seed: Of the bootstrap.
        progress: Called with a scorer's name, pictures done and pictures in all.

    Raises:
        ImportError: A scorer's library is missing.
        ValueError: A scorer's weights are missing, or there is no picture to score.
        OSError: A picture or a reference is gone.
    """
    plan = read_plan(out)
    result = load(plan.task, out)
    for label in plan.scorers:
        _score_all(_single(label), plan, result, device, progress)
    return reopen(out, seed=seed)


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
        source = result.out / records.folder_name(answers.label)
        with tempfile.TemporaryDirectory() as folder:
            for number, item in enumerate(done):
                path = (source / answers.records[item.id].text).resolve()
                (Path(folder) / f"{number:06d}.png").symlink_to(path)
            found[answers.label] = [one.measure(Path(folder), device) for one in given]
    records.write_json(result.out / SETS, to_json(found))
    return found


def draw_samples(result: RunResult, n: int = 8) -> Path | None:
    """Draw the first prompts of every group with their first seed, a column per condition.

    Args:
        result: As `regaze.evals.pictures.runner.run` gives it.
        n: How many prompts.

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
        return _open(item, result, answers) if _painted(answers, item) else None

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
    grid.save_png(path, grid.draw([a.label for a in result.answers], blocks), made)
    return path


def reopen(out: Path, seed: int = 0) -> Scored:
    """Score a run again from what is stored, without pipeline and scorers.

    Raises:
        ValueError: It isn't a run of pictures, or nothing in it is scored.
        OSError: A file can't be read.
    """
    plan = read_plan(out)
    result = load(plan.task, out)
    stored = [
        replace(answers, records=_as_answers(plan, answers, out), by_seed={})
        for answers in result.answers
    ]
    result = replace(result, answers=stored)
    scored = Scored(result, [score_run(result, title="Pictures", seed=seed)])
    write_scores(out, [scored])
    return scored


def _as_answers(plan: Plan, answers: Answers, out: Path) -> dict[str, records.Record]:
    """A condition's records, with the scores of the pictures in place of their files' names."""
    folder = out / records.folder_name(answers.label)
    tables = [_read(_scores_file(folder, label)) for label in plan.scorers]
    found = {}
    for key, record in answers.records.items():
        if not record.ok:
            found[key] = record
        elif all(key in table for table in tables):
            counts = {name: v for table in tables for name, v in table[key].items()}
            found[key] = replace(record, text=json.dumps(counts))
    return found


def _score_all(
    scorer: Scorer, plan: Plan, result: RunResult, device: str, progress: Progress
) -> None:
    """Score what one scorer hasn't scored yet, condition by condition."""
    ready = scorer.load(device)
    baseline = result.answers[0]
    stamp = records.digest([ready.identity, plan.references if scorer.compares else None])
    for answers in result.answers:
        folder = result.out / records.folder_name(answers.label)
        path = _scores_file(folder, scorer.label)
        known = _read(path, stamp)
        items = [item for item in result.items if _painted(answers, item)]
        if scorer.compares and plan.references is None:
            items = [item for item in items if _painted(baseline, item)]
        todo = [item for item in items if item.id not in known]
        path.parent.mkdir(exist_ok=True)
        records.repair(path)
        if not path.exists() or not path.stat().st_size:
            lines.append(path, [{"scorer": stamp}])
        label = f"{scorer.name}, {answers.label}"
        progress(label, len(items) - len(todo), len(items))
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            images = [_open(item, result, answers) for item in batch]
            references = _references(batch, plan, result) if scorer.compares else images
            counts = ready.score(images, [item.prompt for item in batch], references)
            lines.append(path, map(_row, batch, counts))
            progress(label, len(items) - len(todo) + start + len(batch), len(items))


def _references(batch: Sequence[Item], plan: Plan, result: RunResult) -> list[Image.Image]:
    if plan.references is None:
        return [_open(item, result, result.answers[0]) for item in batch]
    found = []
    for item in batch:
        with Image.open(_reference(item, Path(plan.references))) as image:
            found.append(image.convert("RGB"))
    return found


def _reference(item: Item, folder: Path) -> Path:
    """One reference per picture, or one per prompt."""
    names = [records.folder_name(item.id), records.folder_name(item.id.rpartition("/")[0])]
    paths = [folder / f"{name}.png" for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"no reference for {item.id}: {folder} holds neither {paths[0].name} nor "
            f"{paths[1].name}"
        )
    return path


def _open(item: Item, result: RunResult, answers: Answers) -> Image.Image:
    folder = result.out / records.folder_name(answers.label)
    return open_picture(folder / answers.records[item.id].text)


def _painted(answers: Answers, item: Item) -> bool:
    return item.id in answers.records and answers.records[item.id].ok


def _scores_file(folder: Path, label: str) -> Path:
    return folder / _FOLDER / f"{records.folder_name(label)}.jsonl"


def _read(path: Path, stamp: str | None = None) -> dict[str, Counts]:
    """Stored counts by item id; none if another version of the scorer made them."""
    rows = lines.read(path)
    if stamp is not None and rows and rows[0] != {"scorer": stamp}:
        path.unlink()
        return {}
    return {row["id"]: row["counts"] for row in rows[1:]}


def _row(item: Item, counts: Counts) -> dict[str, Any]:
    return {"id": item.id, "counts": {k: None if math.isnan(v) else v for k, v in counts.items()}}


def _single(label: str) -> Scorer:
    found = scorers.parse(label)
    if not isinstance(found, Scorer):
        raise ValueError(f"{label} scores sets of pictures, not single ones")
    return found
