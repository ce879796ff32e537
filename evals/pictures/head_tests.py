"""Tests of heads: pictures painted with some of them perturbed, scored, and kept on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from regaze.evals.pictures.render import Painter, Picture, Shot
from regaze.evals.runs import lines, meeting
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.records import reason
from regaze.hooks.attach import attach
from regaze.interventions.diffusion.soft_pag import SoftPAG

Objective = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""From pictures and their prompts: a score of each picture, higher is better."""
Head = tuple[int, int]
"""Layer and head, as in L18H11."""

SCORES = "scores.jsonl"
CHOSEN = "chosen"
"""The test of the heads that were chosen before, without another one."""


def name_of(head: Head) -> str:
    """A head in the paper's notation, e.g. ``L18H11``."""
    return f"L{head[0]}H{head[1]}"


def as_field(heads: Sequence[Head]) -> dict[str, list[int]]:
    """Heads as `SoftPAG` takes them, e.g. ``{"L18": [11], "L0": [17]}``."""
    found: dict[str, list[int]] = {}
    for layer, head in heads:
        found.setdefault(f"L{layer}", []).append(head)
    return found


@dataclass(frozen=True)
class Tester:
    """Paints and scores the same shots with given heads.

    Attributes:
        painter: The pipeline.
        shots: Prompts and seeds.
        objective: Scores pictures.
        spec: The perturbation of the heads.
        batch_size: Pictures to paint at once.
    """

    painter: Painter
    shots: Sequence[Shot]
    objective: Objective
    spec: SoftPAG
    batch_size: int

    def __call__(self, heads: Sequence[Head]) -> list[float]:
        """The score of each shot with some heads perturbed; without any, unguided."""
        specs = [replace(self.spec, heads=as_field(heads))] if heads else []
        pictures: list[Picture] = []
        with attach(self.painter.pipeline, *specs) as attached:
            for start in range(0, len(self.shots), self.batch_size):
                pictures += self.painter.paint(self.shots[start : start + self.batch_size])
        names = "+".join(map(name_of, heads))
        if specs and not attached.report().fired:
            raise ValueError(f"perturbing {names} never acted: check scale, start and stop")
        if any(picture.flagged for picture in pictures):
            raise ValueError(
                f"the pipeline's safety checker held a picture back ({names or 'unguided'}), which "
                "can't be scored: change that prompt or seed"
            )
        prompts = [shot.prompt for shot in self.shots]
        scores = [float(score) for score in self.objective([p.image for p in pictures], prompts)]
        if len(scores) != len(pictures) or not all(map(math.isfinite, scores)):
            raise ValueError(
                f"the objective gave {scores[:4]} for {len(pictures)} pictures "
                f"({names or 'unguided'}): it must give one finite number for each"
            )
        return scores


def run_tests(
    out: Path,
    world: World,
    number: int,
    pool: Sequence[Head],
    chosen: Sequence[Head],
    tester: Tester,
    progress: Progress,
) -> dict[str, float]:
    """Test this process's part of a round; return the whole round's mean scores by test."""
    tests = {CHOSEN: list(chosen), **{name_of(head): [*chosen, head] for head in pool}}
    before = meeting.read_together(world, partial(read, out))
    known = {row["test"] for row in before if row["round"] == number}
    left = {name: 1 for name in tests if name not in known}
    label = f"round {number + 1}" if pool else "chosen heads"
    mine, finished = meeting.share_out(label, left, len(known), world, progress)
    for name in mine:
        row = {"round": number, "test": name, "scores": tester(tests[name])}
        lines.append(lines.own(out / SCORES, world.rank), [row])
        finished(name)
    rows = meeting.read_together(world, partial(read, out))
    order = {name: place for place, name in enumerate(tests)}
    rows.sort(key=lambda r: (r["round"], order.get(r["test"], 0) * (r["round"] == number)))
    meeting.by_first(world, lambda: lines.settle(out / SCORES, [dict(row) for row in rows]))
    return {
        row["test"]: math.fsum(row["scores"]) / len(row["scores"])
        for row in rows
        if row["round"] == number
    }


class _Row(TypedDict):
    """Scores of the pictures of one test, one number a shot."""

    round: int
    test: str
    scores: Annotated[list[float], MinLen(1)]


_ROW: TypeAdapter[_Row] = TypeAdapter(_Row)


def read(out: Path) -> list[_Row]:
    """All that was tested, each test once, even if a killed run left it in two files."""
    rows = {
        (row["round"], row["test"]): row
        for path in lines.every(out / SCORES)
        for row in lines.read(path, _row, "a score of heads")
    }
    return list(rows.values())


def _row(line: bytes) -> _Row:
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        raise ValueError(reason(error)) from error
