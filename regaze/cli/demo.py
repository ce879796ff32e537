"""demo: the embedded model on two benchmarks with four methods."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from regaze.cli import common
from regaze.cli.common import load_model
from regaze.cli.studies import all_scores, ask, exit_if_silent, on_test_splits
from regaze.evals import sandbox
from regaze.evals.benchmarks.registry import Source
from regaze.evals.reports import tables
from regaze.evals.reports.report import REPORT, write_report
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.records import ConfigMismatchError
from regaze.evals.study import prepare, write_scores

# VHR's layers were chosen on validation scenes, see the sandbox model's card.
_DEMO = ("none", "var", "vhr:layers=[2,3]", "pai", "vaf")
_DEMO_CONTROLS = ("none@blank", "vhr:layers=[2,3],heads=random")
_DEMO_IMAGES = {"pope": 150, "chair": 200}


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/demo"),
) -> None:
    """Score the embedded model on POPE and CHAIR with four methods: a few minutes, no download."""
    jobs = [
        prepare(*split)
        for name, n_images in _DEMO_IMAGES.items()
        for split in on_test_splits(Source(benchmark=name, n_images=n_images), out / name)
    ]
    loaded = load_model(sandbox.MODELS[0])
    conditions = [Condition.parse(text) for text in (*_DEMO, *_DEMO_CONTROLS)]
    try:
        finished = ask(jobs, loaded, conditions, batch_size=18)
    except ConfigMismatchError:
        kept = out.with_name(f"{out.name}-{datetime.now():%Y%m%d-%H%M%S}")
        out.rename(kept)
        common.err.print(f"{out} was made by another version; moved to {kept}", soft_wrap=True)
        finished = ask(jobs, loaded, conditions, batch_size=18)
    scores = all_scores(finished)
    write_scores(out, finished)
    common.out.print(tables.summary(scores))
    write_report(out / REPORT, finished, loaded)
    common.out.print(f"Details: regaze show {out}. Report with pictures:", soft_wrap=True)
    typer.echo((out / REPORT).resolve())
    exit_if_silent(scores)
