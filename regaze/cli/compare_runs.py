"""compare-runs: two runs that were made apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regaze.cli.options import Printed, Profile, exit_if_silent, spread
from regaze.cli.terminal import err


@spread
def compare_runs(
    printed: Printed,
    a: Annotated[Path, typer.Argument(help="A run's directory; its first condition is compared.")],
    b: Annotated[Path, typer.Argument(help="Another run of the same questions.")],
    profile: Profile = None,
) -> None:
    """Compare two runs that were made apart, if they were asked the same in the same way."""
    from regaze.evals import compare_runs as apart

    pairs = apart.compare_runs(a, b, tuple(profile or ()))
    scores = [one for pair in pairs for one in pair.scores]
    differences = list(dict.fromkeys(line for pair in pairs for line in pair.differences))
    printed.show(scores, differences=differences)
    if not printed.as_json:
        for line in differences:
            err.print(f"differs: {line}", soft_wrap=True)
    exit_if_silent(scores)
