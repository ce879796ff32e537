"""compare-runs: two runs that were made apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli import common
from regaze.cli.common import Json, Markdown
from regaze.cli.studies import Profile, exit_if_silent, print_scores
from regaze.evals import compare_runs as runs_apart
from regaze.evals.study import as_json


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
        print_scores(scores, as_json_, as_markdown)
        for line in differences:
            common.err.print(f"differs: {line}", soft_wrap=True, highlight=False, markup=False)
    exit_if_silent(scores)
