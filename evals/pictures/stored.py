"""The source of a run of pictures, and its stored scores, which are read without a scorer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from regaze.evals.pictures import scorers
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.pictures.scorers import Scorer
from regaze.evals.pictures.task import NAME, Pictures
from regaze.evals.runs import lines, records, store
from regaze.evals.runs.results import Answers, RunResult, load
from regaze.evals.scoring.scored import Opened

_FOLDER = "scores"


@dataclass(frozen=True)
class PictureSource:
    """Prompts, seeds and scorers of a run; kept in its directory.

    Attributes:
        prompts: The prompts to paint.
        seeds: Seeds of the noise.
        scorers: Labels of the scorers of single pictures.
        references: Folder of pictures to compare with, named like the run's own; None compares
            with the unedited pipeline's.
    """

    title: ClassVar[str] = "Pictures"

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    scorers: tuple[str, ...]
    references: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the kind of run."""
        prompts = [
            {key: value for key, value in dataclasses.asdict(one).items() if value != ""}
            for one in self.prompts
        ]
        return {"benchmark": NAME, **dataclasses.asdict(self), "prompts": prompts}

    @property
    def task(self) -> Pictures:
        """The task, with its scorers."""
        return Pictures(self.prompts, self.seeds, [single(label) for label in self.scorers])


def read_source(out: Path) -> PictureSource:
    """The source that a run's directory names: what it paints and how it is scored.

    Raises:
        ValueError: It isn't a run of pictures, or a file in it is damaged.
    """
    fields = store.read_run(out)["source"] or {}
    if fields.get("benchmark") != NAME:
        raise ValueError(f"{out} is not a run of pictures")
    known = {key: value for key, value in fields.items() if key != "benchmark"}
    return store.restored(out, PictureSource, known)


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a run again, finished or not, without pipeline and scorers.

    Args:
        folder: The run's directory.
        profiles: Pictures have none.

    Raises:
        ValueError: It isn't a run of pictures, or a file in it is damaged.
        OSError: A file can't be read.
    """
    source = read_source(folder)
    task = source.task
    read = partial(_read_scored, source, task)
    return Opened([task], [source.title], read(folder), read)


def _read_scored(source: PictureSource, task: Pictures, out: Path) -> RunResult:
    """A run whose answers are the stored scores of its pictures."""
    result = load(task, out)
    stored = [
        replace(answers, records=_as_answers(source, answers), by_seed={})
        for answers in result.answers
    ]
    return replace(result, answers=stored)


def _as_answers(source: PictureSource, answers: Answers) -> dict[str, records.Record]:
    """A condition's records, with the scores of the pictures in place of their files' names."""
    tables = [read_scores(scores_file(answers, source, label)) for label in source.scorers]
    found = {}
    for key, record in answers.records.items():
        if not record.ok:
            found[key] = record
        elif all(key in table for table in tables):
            counts = {name: v for table in tables for name, v in table[key].items()}
            found[key] = replace(record, text=json.dumps(counts))
    return found


def scores_file(answers: Answers, source: PictureSource, label: str) -> Path:
    """The file of a scorer's counts of a condition's pictures."""
    return answers.folder / _FOLDER / f"{store.distinct_names(source.scorers)[label]}.jsonl"


def read_scores(path: Path, stamp: str | None = None) -> dict[str, Mapping[str, float | None]]:
    """Stored counts by item id; none if another version of the scorer made them."""
    found = lines.read(path, _line, "a score")
    # A stamp may come twice, where two processes once began at the same time.
    stamps = {row["scorer"] for row in found if "scorer" in row}
    if stamp is not None and stamps != {stamp}:
        path.unlink(missing_ok=True)
        return {}
    return {row["id"]: row["counts"] for row in found if "id" in row and "counts" in row}


class _Stored(TypedDict):
    """A line of scores: first which scorer made them, then one picture's counts each."""

    scorer: NotRequired[str]
    id: NotRequired[str]
    counts: NotRequired[dict[str, float | None]]


_LINES: TypeAdapter[_Stored] = TypeAdapter(_Stored)


def _line(line: bytes) -> _Stored:
    try:
        found = _LINES.validate_json(line)
    except ValidationError as error:
        raise ValueError(records.reason(error)) from error
    if set(found) not in ({"scorer"}, {"id", "counts"}):
        raise ValueError("it needs id and counts, or scorer alone")
    return found


def single(label: str) -> Scorer:
    """The scorer of single pictures with that label.

    Raises:
        ValueError: It scores sets of pictures.
    """
    found = scorers.parse(label)
    if not isinstance(found, Scorer):
        raise ValueError(f"{label} scores sets of pictures, not single ones")
    return found
