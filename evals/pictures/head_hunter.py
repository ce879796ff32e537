"""HeadHunter: find the few attention heads whose perturbation serves an objective.

Ahn et al., arXiv 2506.10978, algorithm 1 (released code: cvlab-kaist/HeadHunter@3828d1c,
``pipeline_distributed.py``). In each round every head that is left is tried together with those
already chosen: the same prompts are painted from the same noise, with guidance away from the
perturbed heads, and scored. The best ones are chosen and leave the pool. Greedy: nothing is taken
back.

As in the paper's algorithm a chosen head isn't tried again; the released code tries it and ignores
it. Ties go to the earlier layer, then to the lower head.

A search shares with other runs how processes lock a directory, share out what is left and meet
(`regaze.evals.runs.meeting`), but it is no work for `regaze.evals.runs.driver`. A driver's run
compares conditions that are known before it begins, each with a folder, a manifest and sessions,
and the unedited model beside them; it keeps answers to be scored later, and errors among them. The
tests of a search, hundreds in a round, are known only when the round before has been decided, their
outcome is numbers, and one that fails must end the search, because the choice is between all. The
driver would have to run in turns, without a baseline and without a task, and a directory would hold
a thousand files in place of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Picture, Shot
from regaze.evals.runs import files, lines, meeting, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import reason
from regaze.hooks.attach import attach
from regaze.hooks.diffusion import sites
from regaze.interventions.diffusion.soft_pag import SoftPAG

Objective = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""From pictures and their prompts: a score of each picture, higher is better."""
Head = tuple[int, int]
"""Layer and head, as in L18H11."""

SPEC = "softpag.json"
_SCORES = "scores.jsonl"
_CHOSEN = "chosen"


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        rounds: How often heads are chosen. The paper: 1 for quality in general, 5 for styles.
        picks: Heads chosen in each round; the paper: 24 and 3.
        spec: What is done to the heads that are tried. The paper searches with u = 1, where
            effects are plain (appendix D.1 says 0.25 for quality in general; the code 1), at
            scale 3, and tunes u down afterwards.
        layers: Numbers of the layers whose heads are tried; None: all.
    """

    rounds: int = 1
    picks: int = 3
    spec: SoftPAG = SoftPAG(scale=3.0, u=1.0)
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.picks < 1:
            raise ValueError(
                "a search needs at least one round and one pick, got "
                f"{self.rounds} and {self.picks}"
            )
        if self.spec.layers is not None or self.spec.heads is not None:
            raise ValueError("a search chooses the heads: leave out layers and heads in its spec")
        if not self.spec.scale or not self.spec.u:
            raise ValueError("a search with scale 0 or u 0 changes nothing: give both a value")


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        scores: Mean score of each head that was tried, with those chosen before.
        chosen: The heads it chose, the best first.
        before: Mean score with the heads chosen before this round; in the first, unguided.
    """

    scores: Mapping[Head, float]
    chosen: tuple[Head, ...]
    before: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        spec: The guidance with all chosen heads.
        rounds: What each round tried and chose.
        score: Mean score with all chosen heads, on the pictures that it was chosen for: expect
            less on others.
    """

    spec: SoftPAG
    rounds: tuple[Round, ...]
    score: float

    @property
    def heads(self) -> tuple[Head, ...]:
        """The chosen heads, in the order in which they were chosen."""
        return tuple(head for one in self.rounds for head in one.chosen)


def hunt(
    loaded: LoadedPipeline,
    shots: Sequence[Shot],
    objective: Objective,
    search: Search,
    *,
    out: Path,
    arguments: Mapping[str, Any],
    identity: Mapping[str, Any] | None = None,
    batch_size: int = 4,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> Found:
    """Search, or go on with a search that was stopped.

    Each head's score is on the disk before the next is tried. Several processes take the heads in
    turn and meet after each round. Writes ``softpag.json``, which `SoftPAG.from_file` reads.

    Args:
        loaded: The pipeline; left as it was found.
        shots: Prompts and seeds, the same for all heads.
        objective: Scores pictures.
        search: How to search.
        out: Directory of the search.
        arguments: The pipeline call's. The paper searches without classifier-free guidance.
        identity: What distinguishes this objective, JSON-able.
        batch_size: Pictures to paint at once.
        progress: Called with the round, heads done and heads in all, of this process.
        world: This process among those that share the work.

    Raises:
        ValueError: The pool is too small, an argument doesn't fit, the objective doesn't give a
            finite score for each picture, or the directory holds a search with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    painter = Painter(loaded.pipeline, arguments)
    pool = heads_of(loaded, search.layers)
    if search.rounds * search.picks > len(pool):
        raise ValueError(
            f"{search.rounds} rounds of {search.picks} heads need {search.rounds * search.picks}, "
            f"but there are {len(pool)}: take fewer, or more layers"
        )
    config = {
        "model": {key: value for key, value in loaded.identity.items() if key != "name"},
        "dtype": loaded.dtype,
        "arguments": painter.settings,
        "shots": [list(shot) for shot in shots],
        "noise": NOISE,
        "batch_size": batch_size,
        "objective": identity,
        "spec": search.spec.to_dict(),
        "pool": [name_of(head) for head in pool],
        "picks": search.picks,
        "regaze": version("regaze"),
    }
    tester = _Tester(painter, shots, objective, search.spec, batch_size)

    def prepare() -> None:
        if not (out / store.MANIFEST).exists():
            files.write_json(out / store.MANIFEST, {"config": config})
        for path in lines.every(out / _SCORES):
            lines.repair(path)

    with meeting.alone(out, {out: config}, prepare, world):
        rounds: list[Round] = []
        chosen: tuple[Head, ...] = ()
        for number in range(search.rounds):
            pool_left = [head for head in pool if head not in chosen]
            found = _test_all(out, world, number, pool_left, chosen, tester, progress)
            scores = {head: found[name_of(head)] for head in pool_left}
            best = sorted(pool_left, key=lambda head: -scores[head])[: search.picks]
            rounds.append(Round(scores, tuple(best), found[_CHOSEN]))
            chosen += tuple(best)
        score = _test_all(out, world, search.rounds, [], chosen, tester, progress)[_CHOSEN]
        spec = replace(search.spec, heads=as_field(chosen))
        fields = {**spec.to_dict(), "heads": as_field(chosen)}
        given = {key: value for key, value in fields.items() if value is not None}
        meeting.by_first(world, lambda: files.write_json(out / SPEC, given))
    return Found(spec, tuple(rounds), score)


def heads_of(loaded: LoadedPipeline, layers: Sequence[int] | None = None) -> list[Head]:
    """All heads of a pipeline that can be perturbed, layer by layer.

    Raises:
        ValueError: A layer doesn't exist.
    """
    counts = {s.layer: s.heads for s in sites(loaded.pipeline) if s.layer is not None}
    for layer in layers or ():
        if layer not in counts:
            raise ValueError(
                f"there is no layer L{layer}: this pipeline has L0 to L{len(counts) - 1}"
            )
    chosen = counts if layers is None else sorted(set(layers))
    return [(layer, head) for layer in chosen for head in range(counts[layer])]


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
class _Tester:
    """Paints and scores the shots with given heads."""

    painter: Painter
    shots: Sequence[Shot]
    objective: Objective
    spec: SoftPAG
    batch_size: int

    def __call__(self, heads: Sequence[Head]) -> list[float]:
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


def _test_all(
    out: Path,
    world: World,
    number: int,
    pool: Sequence[Head],
    chosen: Sequence[Head],
    tester: _Tester,
    progress: Progress,
) -> dict[str, float]:
    """Test this process's part of a round; mean scores of the whole round, by what was tested."""
    tests = {_CHOSEN: list(chosen), **{name_of(head): [*chosen, head] for head in pool}}
    before = meeting.read_together(world, partial(_read, out))
    known = {row["test"] for row in before if row["round"] == number}
    left = {name: 1 for name in tests if name not in known}
    label = f"round {number + 1}" if pool else "chosen heads"
    mine, finished = meeting.share_out(label, left, len(known), world, progress)
    for name in mine:
        row = {"round": number, "test": name, "scores": tester(tests[name])}
        lines.append(lines.own(out / _SCORES, world.rank), [row])
        finished(name)
    rows = meeting.read_together(world, partial(_read, out))
    order = {name: place for place, name in enumerate(tests)}
    rows.sort(key=lambda r: (r["round"], order.get(r["test"], 0) * (r["round"] == number)))
    meeting.by_first(world, lambda: lines.settle(out / _SCORES, [dict(row) for row in rows]))
    return {
        row["test"]: math.fsum(row["scores"]) / len(row["scores"])
        for row in rows
        if row["round"] == number
    }


class _Row(TypedDict):
    """What the pictures of one test scored, one number a shot."""

    round: int
    test: str
    scores: Annotated[list[float], MinLen(1)]


_ROW: TypeAdapter[_Row] = TypeAdapter(_Row)


def _read(out: Path) -> list[_Row]:
    """All that was tested, each test once, even if a killed run left it in two files."""
    rows = {
        (row["round"], row["test"]): row
        for path in lines.every(out / _SCORES)
        for row in lines.read(path, _row, "a score of heads")
    }
    return list(rows.values())


def _row(line: bytes) -> _Row:
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        raise ValueError(reason(error)) from error
