"""eval: a model on a benchmark, as it is and with interventions."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from regaze.cli.options import (
    Compared,
    Model,
    Printed,
    Profile,
    absolute,
    batch_size,
    check_model,
    exit_if_silent,
    spread,
)
from regaze.cli.studies import ask, on_test_splits, tables_of
from regaze.cli.terminal import note, say

if TYPE_CHECKING:
    from regaze.evals.asking.decoding import Decoding
    from regaze.evals.benchmarks.source import Source

_SEEDS = 3
_PICTURES = ("images", "video", "edits", "places")  # Commands of their own: eval images.


@dataclass(frozen=True)
class Questions:
    """The benchmarks to ask."""

    PANEL: ClassVar[str] = "Benchmark"

    benchmarks: Annotated[
        list[str],
        typer.Argument(
            metavar="BENCHMARK",
            help="Benchmarks, e.g. pope or pope chair; `regaze list` names all.",
        ),
    ]
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "--questions",
            "--annotations",
            help="The benchmark's own files, their folder or a Hub id. Repeatable. Without it: "
            "the sandbox's own scenes (POPE, CHAIR).",
        ),
    ] = None
    images: Annotated[str | None, typer.Option(help="Folder of the images.")] = None
    words: Annotated[str | None, typer.Option(help="CHAIR's word table (synonyms.txt).")] = None
    synonyms: Annotated[
        str | None,
        typer.Option(
            help="CHAIR's word table for classes of your own: a row per class and its other words."
        ),
    ] = None
    relabel: Annotated[
        str | None,
        typer.Option(
            help="RePOPE's labels, a file or folder: POPE's answers are scored by them too."
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="Split of the sandbox. Default: each test split of the model's world."),
    ] = None
    n_images: Annotated[
        int | None, typer.Option(min=1, help="Images to draw (sandbox, CHAIR).")
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Ask only so many items: the first of every group, evenly."),
    ] = None
    profile: Profile = None
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the draw of images and of the bootstrap.")
    ] = 0

    def sources(self, model: str) -> list[Source]:
        """The sources of the tasks.

        Raises:
            ValueError: An unknown benchmark, files for several at once, or no data for a model
                that isn't the sandbox's.
        """
        from regaze.evals.benchmarks.registry import find
        from regaze.evals.benchmarks.registry import names as known
        from regaze.evals.benchmarks.source import Source
        from regaze.evals.benchmarks.worlds import SHAPES, home

        names = self.benchmarks
        for name in names:
            if near := difflib.get_close_matches(
                name, _PICTURES if name not in known() else (), n=1
            ):
                raise ValueError(f"unknown benchmark {name!r}; did you mean regaze eval {near[0]}?")
            find(name)
        if len(set(names)) < len(names):
            raise ValueError(f"{' '.join(names)}: name each benchmark once")
        if len(names) > 1 and (self.data or self.profile):
            raise ValueError(
                f"{'--data' if self.data else '--profile'} belongs to one benchmark: run "
                f"{' and '.join(names)} one at a time"
            )
        world = home(model)
        if world is None:
            check_model(model)
        if not self.data and world is None and self.split is None:
            raise ValueError(
                f"--data is missing: where are {names[0].upper()}'s files? (--split test "
                "asks about the sandbox's scenes instead)"
            )
        split = self.split or next(iter((world or SHAPES).tests))
        found = [
            Source(
                benchmark=name,
                data=tuple(map(absolute, self.data or ())),
                images=self.images and absolute(self.images),
                words=self.words and absolute(self.words),
                synonyms=self.synonyms and absolute(self.synonyms),
                relabel=self.relabel and absolute(self.relabel),
                split=split,
                n_images=self.n_images,
                seed=self.seed,
                profiles=tuple(self.profile or ()),
            )
            for name in names
        ]
        for one in found:
            one.check()
        return found

    def places(self, model: str, out: Path) -> list[tuple[Source, Path]]:
        """Each source and its folder; of several benchmarks each has one of its own.

        Raises:
            ValueError: See `sources`.
        """
        found = self.sources(model)
        named = [(one, out / one.benchmark if len(found) > 1 else out) for one in found]
        if not self.on_both_splits:
            return named
        return [place for one in named for place in on_test_splits(*one)]

    @property
    def on_both_splits(self) -> bool:
        """True if the sandbox's two test splits are asked about, apart."""
        return not self.data and self.split is None


@dataclass(frozen=True)
class Answers:
    """Settings of how answers are written."""

    PANEL: ClassVar[str] = "Answers"

    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens. Default: the benchmark's.")
    ] = None
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1
    temperature: Annotated[
        float | None, typer.Option(help="Temperature to sample at. Default: no sampling.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens that have this probability together."),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Sample from so many of the likeliest tokens.")
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help=f"Samples per item. Default: {_SEEDS}."),
    ] = None

    @property
    def decoding(self) -> Decoding:
        """The same as the asker wants it.

        Raises:
            ValueError: Settings exclude each other.
        """
        from regaze.evals.asking.decoding import Decoding

        sampled = any(value is not None for value in (self.temperature, self.top_p, self.top_k))
        n_seeds = self.seeds or (_SEEDS if sampled else 1)
        return Decoding(
            self.num_beams, self.temperature, self.top_p, self.top_k, tuple(range(n_seeds))
        )


@dataclass(frozen=True)
class Work:
    """Settings of how the work is done."""

    PANEL: ClassVar[str] = "Run"

    out: Annotated[
        Path | None, typer.Option(help="Directory of the run. Default: runs/BENCHMARK-MODEL.")
    ] = None
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Items per batch, or auto for as many as fit into memory."
        ),
    ] = "8"
    share_prefix: Annotated[
        bool, typer.Option(help="Encode an image once for all questions about it.")
    ] = True
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="First verify the methods on this model; go on only if they pass."
        ),
    ] = False


@spread
def eval_(
    questions: Questions,
    model: Model,
    compared: Compared,
    answers: Answers,
    work: Work,
    printed: Printed,
) -> None:
    """Score a model on a benchmark, as it is and with interventions, side by side."""
    size = batch_size(work.batch_size)
    out = work.out or Path("runs") / f"{'-'.join(questions.benchmarks)}-{Path(model.model).name}"
    places = questions.places(model.model, out)
    named = compared.conditions
    decoding = answers.decoding
    from regaze.cli.verify import certified
    from regaze.evals.outputs import check_place
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.store import RUN
    from regaze.evals.scoring.scored import write_scores
    from regaze.evals.study import prepare

    check_place(*(folder / name for _, folder in places for name in (RUN, REPORT)))
    jobs = [prepare(source, folder, questions.limit) for source, folder in places]
    world = join()
    loaded = model.load()
    conditions, left_out = compared.on(loaded)
    if world.first:
        note(*(f"left out: {name}: {why}" for name, why in left_out.items()))
    certificates = certified(loaded, conditions) if work.verify else None
    finished = ask(
        jobs,
        loaded,
        conditions,
        out=out,
        certificates=certificates,
        seed=questions.seed,
        batch_size=size,
        limit=questions.limit,
        max_new_tokens=answers.max_new_tokens,
        decoding=decoding,
        share=work.share_prefix,
        world=world,
    )
    if not world.first:
        return
    scores = tables_of(finished)
    write_scores(out, finished)
    write_report(out / REPORT, finished, loaded)
    printed.show(scores, **({"left_out": left_out} if compared.all else {}))
    if printed.plain:
        say(f"Report: {out / REPORT}")
    # That one of all methods doesn't act on a prompt is a finding, and stands in the notes.
    exit_if_silent(scores, [one.label for one in named] if compared.all else None)
