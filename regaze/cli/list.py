"""list: the methods and the benchmarks."""

from __future__ import annotations

from rich.table import Table

from regaze.cli.common import out
from regaze.evals import sandbox
from regaze.evals.benchmarks.registry import BENCHMARKS
from regaze.evals.sandbox.painting import PAINTERS
from regaze.interventions import get, names


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
