"""The command line: every command by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from transformers.utils import logging as transformers_logging

from regaze import (
    cli_animate,
    cli_eval,
    cli_images,
    cli_judge,
    cli_pictures,
    cli_verify,
    cli_video,
)
from regaze.cli_common import Commands, Device, DeviceMap, DType, Json, Model, load_model, out
from regaze.evals import sandbox
from regaze.evals.benchmarks.registry import BENCHMARKS
from regaze.evals.sandbox.painting import PAINTERS
from regaze.interventions import discover_sinks, get, names

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
discover = typer.Typer(no_args_is_help=True, help="Find what a method needs to know of a model.")


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
    embedded = ", ".join((*sandbox.MODELS, *PAINTERS))
    out.print(methods, benchmarks, f"Embedded models: {embedded}", sep="\n")


app.command("eval")(cli_eval.eval_)
app.command("eval images")(cli_images.images)
app.command("eval video")(cli_video.video)
app.command()(cli_eval.show)
app.command()(cli_eval.compare_runs)
app.command()(cli_pictures.compare)
app.command()(cli_pictures.sites)
app.command()(cli_animate.animate)
app.command()(cli_verify.verify)
app.add_typer(discover, name="discover")
app.add_typer(cli_judge.judge, name="judge")
app.command()(cli_eval.demo)
discover.command()(cli_images.heads)


@discover.command()
def sinks(
    model: Model = sandbox.MODELS[0],
    tau: Annotated[
        float | None, typer.Option(help="Threshold, a fraction of sqrt(hidden size).")
    ] = None,
    dtype: DType = None,
    device: Device = None,
    device_map: DeviceMap = None,
    as_json: Json = False,
) -> None:
    """Find the hidden dimensions that mark attention sinks, as VAR needs them."""
    loaded = load_model(model, dtype=dtype, device=device, device_map=device_map)
    profile = discover_sinks(loaded.model, loaded.processor, tau=tau)
    dims = ",".join(map(str, profile.sink_dims))
    spec = f"var:sink_dims=[{dims}],tau={profile.tau:g}" if dims else None
    if as_json:
        typer.echo(json.dumps({**profile.to_dict(), "spec": spec}))
        return
    if spec is None:
        out.print(
            f"{model} has no sink dimensions at tau {profile.tau:g}: VAR would never fire on it",
            soft_wrap=True,
        )
        return
    table = Table("hidden dimension", "|x| / RMS of the first token")
    for dim, strength in zip(profile.sink_dims, profile.strength, strict=True):
        table.add_row(str(dim), f"{strength:.1f}")
    out.print(table)
    out.print(f"--with '{spec}'", soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """Entry point of the command ``regaze``."""
    app(prog_name="regaze")
