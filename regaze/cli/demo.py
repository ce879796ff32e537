"""demo: the embedded model on two benchmarks with four methods."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regaze.cli.options import Model, exit_if_silent
from regaze.cli.studies import ask, on_test_splits, tables_of
from regaze.cli.terminal import err, out, say

if TYPE_CHECKING:
    from regaze.evals.scoring.scored import Scored

# VHR's layers were chosen on validation scenes, see the sandbox model's card.
CONDITIONS = ("none", "var", "vhr:layers=[2,3]", "pai", "vaf")
CONTROLS = ("none@blank", "vhr:layers=[2,3],heads=random")
IMAGES = {"pope": 150, "chair": 200}
_BATCH = 72


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Directory of the run.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Score the embedded model on POPE and CHAIR with four methods: a minute, no download."""
    from regaze.evals.benchmarks.source import Source
    from regaze.evals.outputs import check_place
    from regaze.evals.reports import tables
    from regaze.evals.reports.report import REPORT, write_report
    from regaze.evals.runs.conditions import Condition
    from regaze.evals.scoring.scored import SCORES, write_scores
    from regaze.evals.study import prepare

    check_place(folder / SCORES, folder / REPORT)
    jobs = [
        prepare(*split)
        for name, n_images in IMAGES.items()
        for split in on_test_splits(Source(benchmark=name, n_images=n_images), folder / name)
    ]
    loaded = Model().load()
    conditions = [Condition.parse(text) for text in (*CONDITIONS, *CONTROLS)]
    finished = _anew_if_outdated(
        folder, lambda: ask(jobs, loaded, conditions, out=folder, batch_size=_BATCH)
    )
    scores = tables_of(finished)
    write_scores(folder, finished)
    write_report(folder / REPORT, finished, loaded)
    out.print(tables.summary(scores))
    say(f"Details: regaze show {folder}. Report with pictures:", (folder / REPORT).resolve())
    exit_if_silent(scores)


def _anew_if_outdated(folder: Path, run: Callable[[], list[Scored]]) -> list[Scored]:
    """Run; where another version's demo lies in the folder, move that aside first."""
    from regaze.evals.runs.store import ConfigMismatchError

    try:
        return run()
    except ConfigMismatchError as error:
        if foreign := _foreign(folder):
            raise ValueError(
                f"{folder} holds {foreign}, which is no demo's: give another --out"
            ) from error
    kept = folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder.rename(kept)
    err.print(f"{folder} was made by another version; moved to {kept}", soft_wrap=True)
    return run()


def _foreign(folder: Path) -> str:
    """The first thing in a folder that no demo puts there; empty if there is none."""
    from regaze.evals.benchmarks.worlds import SHAPES
    from regaze.evals.reports.report import REPORT
    from regaze.evals.scoring.scored import SCORES

    own = {SCORES, REPORT, *IMAGES}
    for path in sorted(folder.iterdir()):
        if path.name not in own:
            return path.name
        if path.name in IMAGES:
            for split in sorted(path.iterdir()):
                if split.name not in SHAPES.tests:
                    return f"{path.name}/{split.name}"
    return ""
