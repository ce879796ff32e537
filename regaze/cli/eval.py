"""The commands that measure: eval, show, compare-runs and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from regaze.cli import common
from regaze.cli.common import (
    Attention,
    Device,
    DeviceMap,
    DType,
    Json,
    Markdown,
    Model,
    load_model,
)
from regaze.cli.studies import (
    Profile,
    all_scores,
    ask,
    exit_if_silent,
    on_test_splits,
    print_scores,
)
from regaze.cli.verify import certified
from regaze.evals import sandbox
from regaze.evals.asking.decoding import Decoding
from regaze.evals.benchmarks.registry import BENCHMARKS, TEST_SPLITS, Source, find
from regaze.evals.reports.report import REPORT, write_report
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.distributed import join
from regaze.evals.study import prepare, write_scores

_SEEDS = 3


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
            "--data",
            "--questions",
            "--annotations",
            help="The benchmark's own files, their folder or a Hub id. Repeatable. Without it: "
            "the sandbox's own scenes (POPE, CHAIR).",
        ),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the images.")] = None,
    words: Annotated[str | None, typer.Option(help="CHAIR's word table (synonyms.txt).")] = None,
    synonyms: Annotated[
        str | None,
        typer.Option(help="CHAIR for classes of your own: a row per class and its other words."),
    ] = None,
    relabel: Annotated[
        str | None,
        typer.Option(help="POPE: score the answers with RePOPE's labels too; a file or folder."),
    ] = None,
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
        synonyms=synonyms and _absolute(synonyms),
        relabel=relabel and _absolute(relabel),
        split=split or "test",
        n_images=n_images,
        seed=seed,
        profiles=tuple(profile or ()),
    )
    apart = not data and split is None
    sources = on_test_splits(source, out) if apart else [(source, out)]
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
    finished = ask(
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
    scores = all_scores(finished)
    write_scores(out, finished)
    print_scores(scores, as_json_, as_markdown)
    write_report(out / REPORT, finished, loaded)
    if not (as_json_ or as_markdown):
        common.out.print(f"Report: {out / REPORT}", soft_wrap=True, highlight=False)
    exit_if_silent(scores)


def _absolute(path: str) -> str:
    """What exists here is named so that it is found from elsewhere too; Hub ids stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch-size must be a number of items or auto, got {text!r}")
    return int(text)
