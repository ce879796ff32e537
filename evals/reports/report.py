"""One HTML page about one or more runs: it holds everything it shows, so it can be mailed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded
from regaze.evals.reports import wording
from regaze.evals.reports.gallery import PER_DIRECTION, Flip, flips
from regaze.evals.reports.heats import Heats
from regaze.evals.reports.plots import Bar, Whisker, bars, forest
from regaze.evals.reports.viewer import SCRIPT
from regaze.evals.runs.files import write_text
from regaze.evals.scoring.scored import Scored
from regaze.evals.scoring.scores import ConditionScores, Row, TaskScores
from regaze.evals.scoring.statistics import DRAWS
from regaze.evals.scoring.thresholds import AUC, BEST
from regaze.evals.task import QuestionTask

REPORT = "report.html"
_NAMED, _LONG = 4, 60
_WAYS = {1: "higher is better", -1: "lower is better", 0: "neither is better"}


def write_report(path: Path, runs: Sequence[Scored], loaded: Loaded | None = None) -> None:
    """Write the page.

    Args:
        path: The file to write.
        runs: The runs to report on.
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
    environment.filters.update(
        p=wording.p_value, metric=wording.metric_name, rate=_rate, size=_size
    )
    write_text(path, environment.get_template("report.html.j2").render(_page(runs, loaded)))


def _page(runs: Sequence[Scored], loaded: Loaded | None) -> dict[str, Any]:
    conditions = [c for run in runs for c in run.scores[0].conditions]
    labels = list(dict.fromkeys(c.label for c in conditions if c.control is None))
    manifest = runs[0].result.answers[0].manifest
    session, config = manifest["sessions"][-1], manifest["config"]
    model = Path(manifest["model"]).name
    names = _listed([run.scores[0].title for run in runs])
    pages = [_run(run, loaded) for run in runs]
    return {
        "title": _title(labels[1:], model),
        "subtitle": f"{names}. {config['dtype']} on {session['device']}, "
        f"{session['started'][:10]}, regaze {session['packages']['regaze']}.",
        "runs": pages,
        "flips": any(flips for page in pages for flips in page["gallery"].values()),
        "labels": labels,
        "draws": DRAWS,
        "units": _listed(list(dict.fromkeys(run.scores[0].units for run in runs))),
        "unit": " or ".join(sorted({run.scores[0].units.removesuffix("s") for run in runs})),
        "maps": loaded is not None,
        "script": SCRIPT if any(f.viewer for page in pages for f in _flips(page)) else "",
        "per_direction": PER_DIRECTION,
        "words": wording,
    }


def _flips(page: Mapping[str, Any]) -> list[Flip]:
    return [flip for flips in page["gallery"].values() for flip in flips]


def _title(methods: Sequence[str], model: str) -> str:
    if not methods:
        return f"How {model} does"
    named = _listed(methods)
    if len(named) > _LONG:
        # Settings stand in every table; a long title tells which methods.
        methods = [method.partition(":")[0] for method in methods]
        named = _listed(methods)
    if len(methods) > _NAMED or len(set(methods)) < len(methods):
        named = f"{len(methods)} conditions"
    return f"What {named} change{'s' * (len(methods) == 1)} in {model}"


def _run(run: Scored, loaded: Loaded | None) -> dict[str, Any]:
    main = run.scores[0]
    changes = {c.label: c.change for c in main.conditions if c.change and c.control is None}
    heats = None
    if loaded and isinstance(run.result.task, QuestionTask):
        config = run.result.answers[0].manifest["config"]
        longest = config["decoding"]["max_new_tokens"]
        heats = Heats(run.result.task, Answerer(loaded.model, loaded.processor, longest))
    processor = loaded.processor if loaded else None
    flipped = {label: (len(c.lost), len(c.gained)) for label, c in changes.items()}
    return {
        "scores": run.scores,
        "panels": [_panels(scores) for scores in run.scores],
        "flipped": flipped,
        "flips": {label: {"lost": c.lost, "gained": c.gained} for label, c in changes.items()},
        "most_flipped": max(flipped, key=lambda label: sum(flipped[label]), default=None),
        "gallery": {label: flips(run.result, main, label, processor, heats) for label in changes},
        "costs": [_cost(c, main.conditions[0]) for c in main.conditions if c.cost],
        "manifests": {
            a.label: json.dumps(a.manifest, indent=2, ensure_ascii=False)
            for a in run.result.answers
        },
    }


def _panels(scores: TaskScores) -> dict[str, Any]:
    """The plots of one task, each of the most quoted total where there are several groups."""
    metrics = wording.shown_metrics(scores)
    findings = [metric for metric in metrics if scores.directions[metric]]
    # These can move a score by themselves, so they stand apart from the scores.
    shifts = [metric for metric in scores.directions if not scores.directions[metric]]
    ranks = [AUC, BEST] if wording.threshold_metrics(scores) else []
    rows = scores.sections[-1].rows
    lines = [wording.threshold_line(scores, row) for row in rows]
    return {
        "controls": [row for row in rows if row.condition.control],
        "findings": _forests(scores, findings),
        "shifts": _forests(scores, shifts),
        "thresholds": _forests(scores, ranks),
        "threshold_lines": [line for line in lines if line],
        "categories": _categories(scores, findings[0]) if findings else None,
    }


def _forests(scores: TaskScores, metrics: Sequence[str]) -> list[str]:
    rows = scores.sections[-1].rows
    plots = []
    for metric in metrics:
        whiskers = [whisker for row in rows if (whisker := _whisker(scores, row, metric))]
        # Where nothing moved at all, e.g. the length of yes and no, there is nothing to plot.
        if any(whisker.low != whisker.high for whisker in whiskers):
            name = f"{wording.metric_name(metric)}, {_WAYS[scores.directions[metric]]}"
            unit = "change" if metric in scores.absolute else "change in points"
            key = f"{scores.title} {scores.profile} {name}"
            plots.append(forest(key, name, unit, whiskers))
    return plots


def _whisker(scores: TaskScores, row: Row, metric: str) -> Whisker | None:
    # Without the right image scores fall so far that no other change could be seen.
    if row.change is None or row.condition.image_control:
        return None
    change = row.change.metrics[metric]
    if math.isnan(change.delta) or math.isnan(change.low):
        return None
    scale = wording.scale(scores, metric)
    return Whisker(
        wording.short_label(row.condition),
        change.delta * scale,
        change.low * scale,
        change.high * scale,
        wording.verdict(change, scores.directions[metric]),
        row.condition.control is not None,
    )


def _categories(scores: TaskScores, metric: str) -> dict[str, Any] | None:
    """Bars of one metric by group, without controls; None where there is one group."""
    sections = [s for s in scores.sections if s.title in scores.groups]
    if len(sections) < 2:
        return None
    scale = wording.scale(scores, metric)
    labels = [row.condition.label for row in sections[0].rows if row.condition.control is None]
    series = [
        [
            Bar(*(end * scale for end in (own.value, own.low, own.high)))
            for own in (section.rows[place].metrics[metric] for section in sections)
        ]
        for place in range(len(labels))
    ]
    unit = "" if metric in scores.absolute else "percent"
    key = f"{scores.title} {scores.profile} {metric} by category"
    names = [f"{section.title} ({section.items:,})" for section in sections]
    return {
        "plot": bars(key, f"{wording.metric_name(metric)} by category", unit, names, series),
        "labels": labels,
    }


def _cost(condition: ConditionScores, baseline: ConditionScores) -> dict[str, Any]:
    """The cost of answering, and its time over that of the unedited model."""
    cost, base = condition.cost, baseline.cost
    if cost is None:
        return {}
    return {
        "label": condition.label,
        "items": cost.items_per_s,
        "prefill": cost.prefill_tokens_per_s,
        "decode": cost.decode_tokens_per_s,
        "peak": cost.peak_bytes or cost.rss_bytes,
        "forwards": cost.forwards / cost.items if cost.items else None,
        "columns": cost.columns / cost.items if cost.items else None,
        "time": cost.seconds / cost.items / (base.seconds / base.items)
        if base and base.items and cost.items and base.seconds
        else None,
    }


def _rate(value: float | None) -> str:
    """Three digits, or a dash where nothing was measured."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count else "–"


def _listed(names: Sequence[str]) -> str:
    *firsts, last = names
    return f"{', '.join(firsts)} and {last}" if firsts else last
