"""The command line: every command by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.analyse import group as analyse_group
from regaze.cli.analyse import heads as analyse_heads
from regaze.cli.analyse import overlap
from regaze.cli.animate import animate
from regaze.cli.ask import ask
from regaze.cli.build import pope
from regaze.cli.calibrate import paro
from regaze.cli.compare import compare
from regaze.cli.compare_runs import compare_runs
from regaze.cli.compose import compose
from regaze.cli.demo import demo
from regaze.cli.discover import heads, sinks
from regaze.cli.edit import edit
from regaze.cli.eval import eval_
from regaze.cli.eval_edits import edits
from regaze.cli.eval_images import images
from regaze.cli.eval_places import places
from regaze.cli.eval_video import video
from regaze.cli.group import Commands
from regaze.cli.heads_lvlm import heads_lvlm
from regaze.cli.judge import export, score
from regaze.cli.list import list_
from regaze.cli.measure import group as measure_group
from regaze.cli.measure import vas
from regaze.cli.play import play
from regaze.cli.sandbox import fetch
from regaze.cli.sandbox import group as sandbox_group
from regaze.cli.serve import serve
from regaze.cli.show import show
from regaze.cli.sites import sites
from regaze.cli.tune import tune
from regaze.cli.verify import verify

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
build = typer.Typer(no_args_is_help=True, help="Make a benchmark of your own annotated pictures.")
discover = typer.Typer(no_args_is_help=True, help="Find what a method needs to know of a model.")
analyse = typer.Typer(no_args_is_help=True, help="Analyse a model's attention heads.")
measure = typer.Typer(no_args_is_help=True, help="Measure a model's attention.")
judge = typer.Typer(
    no_args_is_help=True, help="Let a judge of your own rate the answers of a run of mmhal."
)
sandbox = typer.Typer(no_args_is_help=True, help="Get built-in models that are too large to ship.")


@app.callback()
def options(
    load: Annotated[
        list[Path] | None,
        typer.Option(
            "--load",
            metavar="FILE.py",
            help="A Python file that registers methods or benchmarks of your own. Repeatable; may "
            "stand after the command too.",
        ),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show tracebacks and what the libraries say; also after the command."
        ),
    ] = False,
) -> None:
    """Re-aim attention in pretrained models, without training, and measure what that does."""


def group() -> None:
    """Make a benchmark of your own annotated pictures."""


app.command("list")(list_)
app.command("eval")(eval_)
app.command("eval images")(images)
app.command("eval video")(video)
app.command("eval edits")(edits)
app.command("eval places")(places)
app.command()(ask)
app.command()(play)
app.command()(show)
app.command()(compare_runs)
app.command()(compare)
app.command()(sites)
app.command()(animate)
app.command()(edit)
app.command()(compose)
app.command()(verify)
app.command()(serve)
app.add_typer(analyse, name="analyse")
app.command()(tune)
app.add_typer(build, name="build")
app.add_typer(discover, name="discover")
app.add_typer(judge, name="judge")
app.add_typer(measure, name="measure")
app.add_typer(sandbox, name="sandbox")
app.command()(demo)
analyse.callback()(analyse_group)
analyse.command()(analyse_heads)
analyse.command()(overlap)
build.callback()(group)
build.command()(pope)
discover.command()(sinks)
discover.command()(heads)
discover.command()(paro)
discover.command("heads-lvlm")(heads_lvlm)
measure.callback()(measure_group)
measure.command()(vas)
judge.command()(export)
judge.command()(score)
sandbox.callback()(sandbox_group)
sandbox.command()(fetch)
