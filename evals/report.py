"""One HTML page about one or more runs: it holds everything it shows, so it can be mailed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regaze.evals import tables
from regaze.evals.gallery import PER_DIRECTION, flips
from regaze.evals.generation import Answerer
from regaze.evals.models import Loaded
from regaze.evals.plots import Whisker, forest
from regaze.evals.records import write_text
from regaze.evals.scores import Row, TaskScores
from regaze.evals.statistics import DRAWS
from regaze.evals.study import Scored

REPORT = "report.html"


def write_report(path: Path, runs: Sequence[Scored], loaded: Loaded | None = None) -> None:
    """Write the page.

    Args:
        path: Where.
        runs: What it is about.
        loaded: Is asked the flipped items again for attention maps; None leaves the maps out.

    Raises:
        OSError: The file can't be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, p=tables.p_value, metric=tables.metric_name)
    write_text(path, environment.get_template("report.html.j2").render(_page(runs, loaded)))


def _page(runs: Sequence[Scored], loaded: Loaded | None) -> dict[str, Any]:
    labels = list(dict.fromkeys(a.label for run in runs for a in run.result.answers))
    manifest = runs[0].result.answers[0].manifest
    session, config = manifest["sessions"][-1], manifest["config"]
    model = Path(manifest["model"]).name
    names = _listed([run.scores[0].title for run in runs])
    return {
        "title": f"What {_listed(labels[1:])} change{'s' * (len(labels) == 2)} in {model}"
        if labels[1:]
        else f"How {model} does",
        "subtitle": f"{names}. {config['dtype']} on {session['device']}, "
        f"{session['started'][:10]}, regaze {session['packages']['regaze']}.",
        "runs": [_run(run, loaded) for run in runs],
        "labels": labels,
        "draws": DRAWS,
        "per_direction": PER_DIRECTION,
        "tables": tables,
    }


def _run(run: Scored, loaded: Loaded | None) -> dict[str, Any]:
    main = run.scores[0]
    changes = {c.label: c.change for c in main.conditions if c.change}
    answerer = None
    if loaded:
        decoding = run.result.answers[0].manifest["config"]["decoding"]
        answerer = Answerer(loaded.model, loaded.processor, decoding["max_new_tokens"])
    flipped = {label: (len(c.lost), len(c.gained)) for label, c in changes.items()}
    return {
        "scores": run.scores,
        "forests": [_forests(scores) for scores in run.scores],
        "flipped": flipped,
        "most_flipped": max(flipped, key=lambda label: sum(flipped[label]), default=None),
        "gallery": {label: flips(run.result, main, label, answerer) for label in changes},
        "manifests": {
            a.label: json.dumps(a.manifest, indent=2, ensure_ascii=False)
            for a in run.result.answers
        },
    }


def _forests(scores: TaskScores) -> list[str]:
    """One plot per short-table metric, of the groups' mean where there are several groups."""
    rows = scores.sections[-1].rows
    plots = []
    for metric in tables.shown_metrics(scores):
        whiskers = [whisker for row in rows if (whisker := _whisker(scores, row, metric))]
        # Where nothing moved at all, e.g. the length of yes and no, there is nothing to plot.
        if any(whisker.low != whisker.high for whisker in whiskers):
            way = {1: "higher is better", -1: "lower is better", 0: "neither is better"}
            name = f"{tables.metric_name(metric)}, {way[scores.directions[metric]]}"
            unit = "change in words" if metric == "words" else "change in points"
            key = f"{scores.title} {scores.profile} {name}"
            plots.append(forest(key, name, unit, whiskers))
    return plots


def _whisker(scores: TaskScores, row: Row, metric: str) -> Whisker | None:
    if row.change is None:
        return None
    change = row.change.metrics[metric]
    if math.isnan(change.delta) or math.isnan(change.low):
        return None
    scale = tables.scale(metric)
    return Whisker(
        row.condition.label,
        change.delta * scale,
        change.low * scale,
        change.high * scale,
        tables.verdict(change, scores.directions[metric]),
    )


def _number(value: float, metric: str, signed: bool = False) -> str:
    return tables.number(metric, value, signed=signed)


def _listed(names: Sequence[str]) -> str:
    *firsts, last = names
    return f"{', '.join(firsts)} and {last}" if firsts else last
