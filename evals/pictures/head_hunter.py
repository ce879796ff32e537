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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regaze.evals.pictures.head_tests import (
    CHOSEN,
    SCORES,
    Head,
    Objective,
    Tester,
    as_field,
    name_of,
    run_tests,
)
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Shot
from regaze.evals.runs import files, lines, meeting, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.hooks.diffusion import sites
from regaze.interventions.diffusion.soft_pag import SoftPAG

SPEC = "softpag.json"


@dataclass(frozen=True)
class Search:
    """The settings of a search.

    Attributes:
        rounds: Number of rounds of choosing. The paper: 1 for quality in general, 5 for styles.
        picks: Heads chosen in each round; the paper: 24 and 3.
        spec: The perturbation of the heads that are tried. The paper searches with u = 1, where
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
    """One round of a search.

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
    """The findings of a search.

    Attributes:
        spec: The guidance with all chosen heads.
        rounds: The heads tried and chosen in each round.
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
        search: The search's settings.
        out: Directory of the search.
        arguments: The pipeline call's. The paper searches without classifier-free guidance.
        identity: Facts that tell this objective from others, JSON-able.
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
    tester = Tester(painter, shots, objective, search.spec, batch_size)

    def prepare() -> None:
        if not (out / store.MANIFEST).exists():
            files.write_json(out / store.MANIFEST, {"config": config})
        for path in lines.every(out / SCORES):
            lines.repair(path)

    with meeting.alone(out, {out: config}, prepare, world):
        rounds: list[Round] = []
        chosen: tuple[Head, ...] = ()
        for number in range(search.rounds):
            pool_left = [head for head in pool if head not in chosen]
            found = run_tests(out, world, number, pool_left, chosen, tester, progress)
            scores = {head: found[name_of(head)] for head in pool_left}
            best = sorted(pool_left, key=lambda head: -scores[head])[: search.picks]
            rounds.append(Round(scores, tuple(best), found[CHOSEN]))
            chosen += tuple(best)
        score = run_tests(out, world, search.rounds, [], chosen, tester, progress)[CHOSEN]
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
