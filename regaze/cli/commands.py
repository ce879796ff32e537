"""The command line: every command by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from regaze import __version__
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
from regaze.cli.terminal import say
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


def _version(asked: bool) -> None:
    if asked:
        say(f"regaze {__version__}")
        raise typer.Exit


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
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Re-aim attention in pretrained models, without training, and measure what that does."""


def group() -> None:
    """Make a benchmark of your own annotated pictures."""


_TRY, _SCORE = "Try a model", "Score language models"
_PAINT, _LOOK = "Paint, edit and score pictures", "Check methods and look into models"

_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    _TRY: {"demo": demo, "list": list_, "ask": ask, "play": play, "serve": serve},
    _SCORE: {"eval": eval_, "show": show, "compare-runs": compare_runs, "tune": tune},
    _PAINT: {
        "compare": compare,
        "edit": edit,
        "compose": compose,
        "animate": animate,
        "eval images": images,
        "eval video": video,
        "eval edits": edits,
        "eval places": places,
        "sites": sites,
    },
    _LOOK: {"verify": verify},
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(build, name="build", rich_help_panel=_SCORE)
app.add_typer(judge, name="judge", rich_help_panel=_SCORE)
app.add_typer(analyse, name="analyse", rich_help_panel=_LOOK)
app.add_typer(discover, name="discover", rich_help_panel=_LOOK)
app.add_typer(measure, name="measure", rich_help_panel=_LOOK)
app.add_typer(sandbox, name="sandbox", rich_help_panel=_TRY)
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
