"""list: the methods and the benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import typer

from regaze.cli.options import Json
from regaze.cli.terminal import out, say
from regaze.evals import sandbox
from regaze.evals.reports.whole_words import WholeWords
from regaze.evals.sandbox import smol
from regaze.evals.sandbox.video import PIPELINES


def list_(as_json: Json = False) -> None:
    """List the methods, with their published settings, and the benchmarks."""
    from regaze.evals.benchmarks import registry
    from regaze.interventions import names
    from regaze.interventions.base import describe

    if as_json:
        benchmarks_said = {
            name: dict(zip(("asks", "paper"), _or_why_not(registry.describe, name), strict=True))
            for name in registry.names()
        }
        methods_said = {name: _method(name) for name in names()}
        models = [*sandbox.MODELS, *PIPELINES, *smol.MODELS]
        found = {"methods": methods_said, "benchmarks": benchmarks_said, "models": models}
        typer.echo(json.dumps(found))
        return
    methods = WholeWords(
        "method",
        "does",
        "paper",
        title="Methods (--with NAME, or with published settings NAME@PRESET)",
        title_justify="left",
    )
    for name in names():
        says, paper = _or_why_not(describe, name)
        presets = " ".join(f"@{preset}" for preset in _presets(name))
        # The one long address would leave no room for the rest.
        where = re.sub(r"(?<=\w/)(?=\S{20})", "\n", paper)
        methods.add_row(name, f"{says}\n{presets}" if presets else says, where)
    benchmarks = WholeWords("benchmark", "asks", "paper", title="Benchmarks", title_justify="left")
    for name in registry.names():
        benchmarks.add_row(name, *_or_why_not(registry.describe, name))
    out.print(methods, benchmarks, sep="\n")
    say(f"Embedded models: {', '.join((*sandbox.MODELS, *PIPELINES))}")
    say(f"After `regaze sandbox fetch`: {', '.join(smol.MODELS)}")


def _presets(name: str) -> tuple[str, ...]:
    """Names of a method's presets; none of one that can't be loaded, whose row says so."""
    from regaze.interventions.base import presets

    try:
        return presets(name)
    except ImportError:
        return ()


def _method(name: str) -> dict[str, Any]:
    """A method's description, with the fields and sources of its presets."""
    from regaze.interventions import get
    from regaze.interventions.base import describe

    says, paper = _or_why_not(describe, name)
    known: dict[str, Any] = {}
    if _presets(name):
        cls = get(name)
        for preset, settings in cls.presets.items():
            made = cls.preset(preset).to_dict()
            fields = {field: made[field] for field in settings.fields}
            known[preset] = {"fields": fields, "source": settings.source}
    return {"does": says, "paper": paper, "presets": known}


def _or_why_not(describe: Callable[[str], tuple[str, str]], name: str) -> tuple[str, str]:
    """The description of a name; of an installed package's that can't be loaded, the reason."""
    try:
        return describe(name)
    except ImportError as error:
        return str(error), ""
