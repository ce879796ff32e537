"""The commands that measure: eval, show, compare-runs and demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from regaze import cli_common as common
from regaze.cli_common import (
    Attention,
    Device,
    DeviceMap,
    DType,
    Json,
    Markdown,
    Model,
    fail,
    load_model,
)
from regaze.cli_verify import certified
from regaze.evals import compare_runs as runs_apart
from regaze.evals import sandbox
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.models import Loaded
from regaze.evals.benchmarks.registry import BENCHMARKS, TEST_SPLITS, Source, find
from regaze.evals.reports import tables
from regaze.evals.reports.markdown import markdown
from regaze.evals.reports.report import REPORT, write_report
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.distributed import World, join
from regaze.evals.runs.progress import bars
from regaze.evals.runs.records import ConfigMismatchError
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.study import Job, Scored, as_json, prepare, reopen, study, write_scores

# VHR's layers were chosen on validation scenes, see the sandbox model's card.
_DEMO = ("none", "var", "vhr:layers=[2,3]", "pai", "vaf")
_DEMO_CONTROLS = ("none@blank", "vhr:layers=[2,3],heads=random")
_DEMO_IMAGES = {"pope": 150, "chair": 200}
_SEEDS = 3

Profile = Annotated[
    list[str] | None, typer.Option(help="Scoring rules, e.g. official or opera. Repeatable.")
]


def eval_(
    benchmark: Annotated[str, typer.Argument(help=" or ".join(BENCHMARKS))],
    model: Model = sandbox.MODELS[0],
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            "-w",
            help="A condition: none, var, vhr:alpha=2, or var+pai. Repeatable; none always runs.",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Also what chance would give: wrong and blank image, random heads."
        ),
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The benchmark's own files, their folder or a Hub id. Repeatable. Without it: "
            "the sandbox's own scenes (POPE, CHAIR)."
        ),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    words: Annotated[str | None, typer.Option(help="CHAIR's word table (synonyms.txt).")] = None,
    split: Annotated[
        str | None,
        typer.Option(help=f"Of the sandbox. Default: {' and '.join(TEST_SPLITS)}, apart."),
    ] = None,
    n_images: Annotated[
        int | None, typer.Option(min=1, help="Images to draw (sandbox, CHAIR).")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Ask only so many items: the first of every group, evenly."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run. Default: runs/BENCHMARK-MODEL.")
    ] = None,
    batch_size: Annotated[
        str, typer.Option(metavar="N|auto", help="Items per batch; auto: as many as fit.")
    ] = "8",
    share_prefix: Annotated[
        bool, typer.Option(help="Encode an image once for all questions about it.")
    ] = True,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: the benchmark's.")
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search; 1 is greedy.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="Sample, at this temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from that much probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many tokens.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help=f"Samples per item. Default: {_SEEDS}.")
    ] = None,
    profile: Profile = None,
    seed: Annotated[int, typer.Option(help="Of drawn images and of the bootstrap.")] = 0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="First verify the methods on this model; go on only if they pass."
        ),
    ] = False,
    dtype: DType = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    as_json_: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Score a model on a benchmark, as it is and with interventions, side by side."""
    find(benchmark)
    conditions = [Condition.parse(text) for text in with_ or ()]
    if controls:
        conditions = with_controls(conditions)
    samples = any(value is not None for value in (temperature, top_p, top_k))
    n_seeds = seeds or (_SEEDS if samples else 1)
    decoding = Decoding(num_beams, temperature, top_p, top_k, tuple(range(n_seeds)))
    size = _batch_size(batch_size)
    if not data and not sandbox.is_sandbox(model) and split is None:
        raise ValueError(
            f"--data is missing: where are {benchmark.upper()}'s files? (--split test asks about "
            "the sandbox's scenes instead)"
        )
    out = out or Path("runs") / f"{benchmark}-{Path(model).name}"
    source = Source(
        benchmark=benchmark,
        data=tuple(map(_absolute, data or ())),
        images=images and _absolute(images),
        words=words and _absolute(words),
        split=split or "test",
        n_images=n_images,
        seed=seed,
        profiles=tuple(profile or ()),
    )
    apart = not data and split is None
    sources = _on_test_splits(source, out) if apart else [(source, out)]
    jobs = [prepare(source, out, limit) for source, out in sources]
    world = join()
    loaded = load_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    certificates = certified(loaded, conditions) if verify else None
    finished = _study(
        jobs,
        loaded,
        conditions,
        certificates=certificates,
        seed=seed,
        batch_size=size,
        limit=limit,
        max_new_tokens=max_new_tokens,
        decoding=decoding,
        share=share_prefix,
        world=world,
    )
    if not world.first:
        return
    scores = _scores(finished)
    write_scores(out, finished)
    _print(scores, as_json_, as_markdown)
    write_report(out / REPORT, finished, loaded)
    if not (as_json_ or as_markdown):
        common.out.print(f"Report: {out / REPORT}", soft_wrap=True, highlight=False)
    _exit_if_silent(scores)


def show(
    directory: Annotated[Path, typer.Argument(help="A run's directory, finished or not.")],
    profile: Profile = None,
    as_json_: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Score what a run has answered so far and print the table."""
    scores = _scores(reopen(directory, tuple(profile or ())))
    _print(scores, as_json_, as_markdown)
    _exit_if_silent(scores)


def compare_runs(
    a: Annotated[Path, typer.Argument(help="A run's directory; its first condition is compared.")],
    b: Annotated[Path, typer.Argument(help="Another run of the same questions.")],
    profile: Profile = None,
    as_json_: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Compare two runs that were made apart, if they were asked the same in the same way."""
    pairs = runs_apart.compare_runs(a, b, tuple(profile or ()))
    scores = [one for pair in pairs for one in pair.scores]
    differences = list(dict.fromkeys(line for pair in pairs for line in pair.differences))
    if as_json_:
        typer.echo(json.dumps({**as_json(scores), "differences": differences}, ensure_ascii=False))
    else:
        _print(scores, as_json_, as_markdown)
        for line in differences:
            common.err.print(f"differs: {line}", soft_wrap=True, highlight=False, markup=False)
    _exit_if_silent(scores)


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/demo"),
) -> None:
    """Score the embedded model on POPE and CHAIR with four methods: a few minutes, no download."""
    jobs = [
        prepare(*split)
        for name, n_images in _DEMO_IMAGES.items()
        for split in _on_test_splits(Source(benchmark=name, n_images=n_images), out / name)
    ]
    loaded = load_model(sandbox.MODELS[0])
    conditions = [Condition.parse(text) for text in (*_DEMO, *_DEMO_CONTROLS)]
    try:
        finished = _study(jobs, loaded, conditions, batch_size=18)
    except ConfigMismatchError:
        kept = out.with_name(f"{out.name}-{datetime.now():%Y%m%d-%H%M%S}")
        out.rename(kept)
        common.err.print(f"{out} was made by another version; moved to {kept}", soft_wrap=True)
        finished = _study(jobs, loaded, conditions, batch_size=18)
    scores = _scores(finished)
    write_scores(out, finished)
    common.out.print(tables.summary(scores))
    write_report(out / REPORT, finished, loaded)
    common.out.print(f"Details: regaze show {out}. Report with pictures:", soft_wrap=True)
    typer.echo((out / REPORT).resolve())
    _exit_if_silent(scores)


def _on_test_splits(source: Source, out: Path) -> list[tuple[Source, Path]]:
    return [(replace(source, split=split), out / split) for split in TEST_SPLITS]


def _absolute(path: str) -> str:
    """What exists here is named so that it is found from elsewhere too; Hub ids stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch-size must be a number of items or auto, got {text!r}")
    return int(text)


def _study(
    jobs: Sequence[Job],
    loaded: Loaded,
    conditions: Sequence[Condition],
    world: World | None = None,
    **options: Any,
) -> list[Scored]:
    with bars(shown=world is None or world.first) as follow:
        return study(jobs, loaded, conditions, progress=follow, world=world, **options)


def _scores(finished: Sequence[Scored]) -> list[TaskScores]:
    return [scores for run in finished for scores in run.scores]


def _print(scores: Sequence[TaskScores], as_json_: bool, as_markdown: bool) -> None:
    if as_json_:
        typer.echo(json.dumps(as_json(scores), ensure_ascii=False))
    elif as_markdown:
        typer.echo(markdown(scores), nl=False)
    else:
        for one in scores:
            common.out.print(tables.render(one))


def _exit_if_silent(scores: Sequence[TaskScores]) -> None:
    silent = sorted({label for one in scores for label in one.silent})
    if silent:
        fail(f"never fired, so not reported: {', '.join(silent)}", 1)
