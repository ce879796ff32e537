"""list: the methods and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from regaze.cli.terminal import out, say
from regaze.evals import sandbox
from regaze.evals.sandbox.painting import PAINTERS


def list_() -> None:
    """List the methods and the benchmarks, shipped and of your own."""
    from regaze.evals.benchmarks import registry
    from regaze.interventions import names
    from regaze.interventions.base import describe

    methods = Table(
        "method", "what it does", "paper", title="Methods (--with)", title_justify="left"
    )
    for name in names():
        methods.add_row(name, *_or_why_not(describe, name))
    benchmarks = Table(
        "benchmark", "what it asks", "paper", title="Benchmarks", title_justify="left"
    )
    for name in registry.names():
        benchmarks.add_row(name, *_or_why_not(registry.describe, name))
    out.print(methods, benchmarks, sep="\n")
    say(f"Embedded models: {', '.join((*sandbox.MODELS, *PAINTERS))}")


def _or_why_not(describe: Callable[[str], tuple[str, str]], name: str) -> tuple[str, str]:
    """What there is to say of a name; of an installed package's that can't be loaded, why."""
    try:
        return describe(name)
    except ImportError as error:
        return str(error), ""
