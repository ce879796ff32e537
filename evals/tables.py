"""Scores as a terminal table, and the way numbers are shown everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regaze.evals.scores import ConditionScores, Row, TaskScores
from regaze.evals.statistics import Change

Verdict = Literal["better", "worse", "moved", "open"]

_NAMES = {"f1": "F1", "chair_s": "CHAIR_s", "chair_i": "CHAIR_i"}
_STYLES: Mapping[Verdict, str] = {"better": "green", "worse": "red", "moved": "yellow", "open": ""}
_MARKS: Mapping[Verdict, str] = {"better": "▲", "worse": "▼", "moved": "●", "open": ""}
_TRUNCATED = 0.01
_KEY = (
    "Shares in percent; changes with 95 % intervals from a paired bootstrap over images. "
    "▲ better, ▼ worse, ● moved: the interval excludes 0."
)


def metric_name(metric: str) -> str:
    """A metric's name for readers, e.g. ``yes ratio``."""
    return _NAMES.get(metric, metric.replace("_", " "))


def shown_metrics(scores: TaskScores) -> list[str]:
    """The metrics that stand in a short table, the first one being the headline."""
    return [m for m in scores.headline or scores.directions if m in scores.directions]


def scale(metric: str) -> int:
    """What a metric is multiplied by to be shown: shares are shown in percent."""
    return 1 if metric == "words" else 100


def number(metric: str, value: float | None, *, signed: bool = False) -> str:
    """A metric's value or change: shares times 100, words as they are, a dash where undefined."""
    if value is None or math.isnan(value):
        return "–"
    shown = round(value * scale(metric), 1) + 0.0
    return f"{shown:{'+' if signed and shown else ''}.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value with as many digits as it deserves."""
    if math.isnan(p):
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}"[1:] if p < 0.1 else f"{p:.2f}".removeprefix("0")


def verdict(change: Change, direction: int) -> Verdict:
    """Whether the interval excludes zero, and on which side."""
    if not (change.low > 0 or change.high < 0):
        return "open"
    if direction == 0:
        return "moved"
    return "better" if change.delta * direction > 0 else "worse"


def mark(change: Change, direction: int) -> str:
    """A sign for `verdict`: better, worse or, where neither is better, moved."""
    return _MARKS[verdict(change, direction)]


def firing_line(condition: ConditionScores) -> str:
    """What a condition's interventions did, in one line."""
    if condition.firing is None:
        return "nothing attached" if condition.change is None else "no record of its firing"
    fired = [
        (one["label"].partition(":")[0], _fired(one)) for one in condition.firing["interventions"]
    ]
    return fired[0][1] if len(fired) == 1 else "; ".join(f"{name} {line}" for name, line in fired)


def notes(scores: TaskScores) -> list[str]:
    """What a reader must know besides the numbers."""
    lines = []
    if scores.scored < scores.asked:
        lines.append(
            f"{scores.scored} of {scores.asked} items are scored: those that every reported "
            "condition has answered"
        )
    if scores.failures:
        first = next(iter(scores.failures.items()))
        lines.append(f"{len(scores.failures)} items have no answer, e.g. {first[0]}: {first[1]}")
    for one in scores.conditions:
        if one.status == "unanswered":
            lines.append(f"{one.label} has no answers yet")
        if one.status == "silent":
            lines.append(
                f"{one.label} NEVER FIRED, so its answers are the unedited model's and no score "
                "is reported: check the layers and thresholds of its settings"
            )
        if one.score and one.truncated > _TRUNCATED * one.answered:
            lines.append(
                f"{one.label}: {one.truncated} of {one.answered} answers were cut at the length "
                "limit; raise --max-new-tokens"
            )
    return lines


def render(scores: TaskScores) -> RenderableType:
    """The table, with a line per condition on what it did and the notes."""
    metrics = shown_metrics(scores)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", min_width=14, max_width=24, overflow="fold")
    for metric in metrics:
        table.add_column(metric_name(metric), no_wrap=True)
    compared = any(condition.change for condition in scores.conditions)
    if compared:
        table.add_column("flips\np", no_wrap=True)
    sections = scores.sections
    for section in sections:
        table.add_section()
        if len(sections) > 1:
            table.add_row(Text(section.title, style="bold"))
        for row in section.rows:
            table.add_row(*_cells(scores, row, metrics))
    fired = [
        Text(f"  {c.label}: {firing_line(c)}", style="dim") for c in scores.conditions if c.change
    ]
    warned = [Text(f"  ! {line}", style="yellow") for line in notes(scores)]
    key = "Shares in percent, with 95 % intervals from a bootstrap over images."
    if compared:
        key = (
            f"{_KEY} Flips: − right to wrong, + wrong to right; p belongs to "
            f"{metric_name(metrics[0])}."
        )
    return Group(_title(scores), Text(key, style="dim"), table, *fired, *warned, "")


def summary(runs: Sequence[TaskScores]) -> RenderableType:
    """Several tasks with a column per condition; of groups only their mean."""
    labels = list(dict.fromkeys(c.label for scores in runs for c in scores.conditions))
    parts: list[RenderableType] = []
    for scores in runs:
        rows = {row.condition.label: row for row in scores.sections[-1].rows}
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", min_width=9)
        for label in labels:
            # As wide as the widest interval, so that the tables stand in line.
            table.add_column(label, min_width=14 if label in rows and rows[label].change else 5)
        for metric in shown_metrics(scores)[:3]:
            cells = [_cell(scores, rows.get(label), metric) for label in labels]
            table.add_row(metric_name(metric), *cells)
        parts += [_title(scores), table]
    return Group(*parts, Text(f"{_KEY} Of groups the mean is shown.", style="dim"), "")


def _title(scores: TaskScores) -> Text:
    title = Text(scores.title, style="bold")
    about = f"  {scores.task}/{scores.profile}, {scores.scored} items, {scores.clusters} images"
    return title.append(about, style="dim not bold")


def _cells(scores: TaskScores, row: Row, metrics: Sequence[str]) -> list[Text]:
    cells = [Text(row.condition.label), *(_cell(scores, row, metric) for metric in metrics)]
    if row.change:
        flips = f"−{len(row.change.lost)} +{len(row.change.gained)}"
        cells.append(Text(f"{flips}\n{p_value(row.change.metrics[metrics[0]].p)}"))
    return cells


def _cell(scores: TaskScores, row: Row | None, metric: str) -> Text:
    """The value and its change, and on a second line the interval of what is new."""
    if row is None:
        return Text("–")
    own = row.metrics[metric]
    cell = Text(number(metric, own.value))
    ends = [number(metric, end) for end in (own.low, own.high)]
    if row.change:
        change, direction = row.change.metrics[metric], scores.directions[metric]
        moved = f" {number(metric, change.delta, signed=True)}{mark(change, direction)}"
        cell.append(moved, style=_STYLES[verdict(change, direction)])
        ends = [number(metric, end, signed=True) for end in (change.low, change.high)]
    if metric != "words" and (row.change or len(scores.conditions) == 1):
        cell.append(f"\n[{', '.join(ends)}]", style="dim")
    return cell


def _fired(one: Mapping[str, Any]) -> str:
    acted = [layer for layer in one["layers"] if layer["effect"] > 0]
    if not one["fired"]:
        return "off by its settings" if one["exempt"] else "NEVER FIRED"
    return (
        f"fired in {len(acted)} of {len(one['layers'])} layers, mean effect {one['effect']:.3f} "
        f"over {one['prompts']} prompts"
    )
