"""The command line: list, eval, show, discover and demo."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging
from typer.core import TyperGroup

from regaze.evals import sandbox, tables
from regaze.evals.benchmarks import BENCHMARKS, TEST_SPLITS, Source, find
from regaze.evals.conditions import Condition
from regaze.evals.models import Loaded, load
from regaze.evals.progress import bars
from regaze.evals.records import ConfigMismatchError
from regaze.evals.report import REPORT, write_report
from regaze.evals.study import Job, Scored, as_json, prepare, reopen, study
from regaze.interventions import discover_sinks, get, names

# VHR's layers were chosen on validation scenes, see the sandbox model's card.
_DEMO = ("none", "var", "vhr:layers=[2,3]", "pai", "vaf")
_DEMO_IMAGES = {"pope": 150, "chair": 200}
_out, _err = Console(), Console(stderr=True)


class _Commands(TyperGroup):
    """Says in one line what a user can put right; ``--debug`` shows where it came up."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("stopped; finished answers are kept: the same command carries on", 130)
        except torch.OutOfMemoryError:
            _fail("out of memory: give a smaller --batch-size and another --out", 2)
        except (ValueError, OSError, TypeError, ImportError, NotImplementedError) as error:
            if ctx.params.get("debug"):
                raise
            _fail(" ".join(str(error).split()) or type(error).__name__, 2)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
discover = typer.Typer(no_args_is_help=True, help="Find what a method needs to know of a model.")
app.add_typer(discover, name="discover")

Model = Annotated[
    str, typer.Option("--model", "-m", help="sandbox, sandbox-plain, a folder or a Hub id.")
]
DType = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16, float16. Default: float32 on the CPU, else auto."),
]
Device = Annotated[str | None, typer.Option(help="Default: the first GPU, else cpu.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the model over devices, e.g. auto.")]
Attention = Annotated[
    str | None, typer.Option("--attn-implementation", help="sdpa, eager, flash_attention_2, ...")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Re-aim attention in pretrained models, without training, and measure what that does."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@app.command("list")
def list_() -> None:
    """List the methods and the benchmarks."""
    methods = Table(
        "method", "what it does", "paper", title="Methods (--with)", title_justify="left"
    )
    for name in names():
        method = get(name)
        methods.add_row(name, method.summary, method.paper)
    benchmarks = Table(
        "benchmark", "what it asks", "paper", title="Benchmarks", title_justify="left"
    )
    for name, benchmark in BENCHMARKS.items():
        benchmarks.add_row(name, benchmark.summary, benchmark.paper)
    _out.print(methods, benchmarks, f"Embedded models: {', '.join(sandbox.MODELS)}", sep="\n")


@app.command("eval")
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
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="POPE: question files, a folder of them or a Hub id. CHAIR: COCO annotation "
            "files or their folder. Without it: the sandbox's own scenes."
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
    batch_size: Annotated[int, typer.Option(min=1, help="Items per batch.")] = 8,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: the benchmark's.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Scoring rules, e.g. official or opera. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of drawn images and of the bootstrap.")] = 0,
    dtype: DType = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    as_json_: Json = False,
) -> None:
    """Score a model on a benchmark, as it is and with interventions, side by side."""
    find(benchmark)
    conditions = [Condition.parse(text) for text in with_ or ()]
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
    loaded = _load(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    finished = _study(
        jobs,
        loaded,
        conditions,
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        max_new_tokens=max_new_tokens,
    )
    _print(finished, as_json_)
    write_report(out / REPORT, finished, loaded)
    if not as_json_:
        _out.print(f"Report: {out / REPORT}", soft_wrap=True, highlight=False)
    _exit_if_silent(finished)


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A run's directory, finished or not.")],
    profile: Annotated[
        list[str] | None, typer.Option(help="Score the stored answers by other rules. Repeatable.")
    ] = None,
    as_json_: Json = False,
) -> None:
    """Score what a run has answered so far and print the table."""
    finished = reopen(directory, tuple(profile or ()))
    _print(finished, as_json_)
    _exit_if_silent(finished)


@discover.command()
def sinks(
    model: Model = sandbox.MODELS[0],
    tau: Annotated[
        float | None, typer.Option(help="Threshold, a fraction of sqrt(hidden size).")
    ] = None,
    dtype: DType = None,
    device: Device = None,
    device_map: DeviceMap = None,
    as_json_: Json = False,
) -> None:
    """Find the hidden dimensions that mark attention sinks, as VAR needs them."""
    loaded = _load(model, dtype=dtype, device=device, device_map=device_map)
    profile = discover_sinks(loaded.model, loaded.processor, tau=tau)
    dims = ",".join(map(str, profile.sink_dims))
    spec = f"var:sink_dims=[{dims}],tau={profile.tau:g}" if dims else None
    if as_json_:
        typer.echo(json.dumps({**profile.to_dict(), "spec": spec}))
        return
    if spec is None:
        _out.print(
            f"{model} has no sink dimensions at tau {profile.tau:g}: VAR would never fire on it",
            soft_wrap=True,
        )
        return
    table = Table("hidden dimension", "|x| / RMS of the first token")
    for dim, strength in zip(profile.sink_dims, profile.strength, strict=True):
        table.add_row(str(dim), f"{strength:.1f}")
    _out.print(table)
    _out.print(f"--with '{spec}'", soft_wrap=True, markup=False, highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/demo"),
) -> None:
    """Score the embedded model on POPE and CHAIR with four methods: a few minutes, no download."""
    jobs = [
        prepare(*split)
        for name, n_images in _DEMO_IMAGES.items()
        for split in _on_test_splits(Source(benchmark=name, n_images=n_images), out / name)
    ]
    loaded = _load(sandbox.MODELS[0])
    conditions = [Condition.parse(text) for text in _DEMO]
    try:
        finished = _study(jobs, loaded, conditions, batch_size=18)
    except ConfigMismatchError:
        kept = out.with_name(f"{out.name}-{datetime.now():%Y%m%d-%H%M%S}")
        out.rename(kept)
        _err.print(f"{out} was made by another version; moved to {kept}", soft_wrap=True)
        finished = _study(jobs, loaded, conditions, batch_size=18)
    _out.print(tables.summary([scores for run in finished for scores in run.scores]))
    write_report(out / REPORT, finished, loaded)
    _out.print(f"Details: regaze show {out}. Report with pictures:", soft_wrap=True)
    typer.echo((out / REPORT).resolve())
    _exit_if_silent(finished)


def main() -> None:
    """Entry point of the command ``regaze``."""
    app(prog_name="regaze")


def _load(model: str, **options: str | None) -> Loaded:
    if sandbox.is_sandbox(model) and "OMP_NUM_THREADS" not in os.environ:
        # So small a model only loses by threads that wait for each other, most of all on a busy
        # machine; one thread also fixes the order of sums.
        torch.set_num_threads(1)
    return load(model, **options)


def _on_test_splits(source: Source, out: Path) -> list[tuple[Source, Path]]:
    return [(replace(source, split=split), out / split) for split in TEST_SPLITS]


def _absolute(path: str) -> str:
    """What exists here is named so that it is found from elsewhere too; Hub ids stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _study(
    jobs: Sequence[Job], loaded: Loaded, conditions: Sequence[Condition], **options: Any
) -> list[Scored]:
    with bars() as follow:
        return study(jobs, loaded, conditions, progress=follow, **options)


def _print(finished: Sequence[Scored], as_json_: bool) -> None:
    scores = [scores for run in finished for scores in run.scores]
    if as_json_:
        typer.echo(json.dumps(as_json(scores), ensure_ascii=False))
        return
    for one in scores:
        _out.print(tables.render(one))


def _exit_if_silent(finished: Sequence[Scored]) -> None:
    silent = sorted({label for run in finished for label in run.scores[0].silent})
    if silent:
        _fail(f"never fired, so not reported: {', '.join(silent)}", 1)


def _fail(message: str, code: int) -> NoReturn:
    _err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    raise typer.Exit(code)
