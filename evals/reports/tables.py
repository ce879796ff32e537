"""Scores as terminal tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from regaze.evals.reports.whole_words import WholeWords
from regaze.evals.reports.wording import (
    Verdict,
    firing_line,
    interval,
    mark,
    metric_name,
    notes,
    number,
    p_value,
    seeds,
    shown_metrics,
    threshold_line,
    threshold_metrics,
    verdict,
)
from regaze.evals.scoring.scores import Row, TaskScores
from regaze.evals.task import POOLED

_STYLES: Mapping[Verdict, str] = {"better": "green", "worse": "red", "moved": "yellow", "open": ""}
_LABEL, _INTERVAL = 24, 13
_KEY = (
    "Shares in percent; changes with 95 % intervals from a paired bootstrap over {}. "
    "▲ better, ▼ worse, ● moved: the interval excludes 0."
)


def render(scores: TaskScores) -> RenderableType:
    """The table, whether thresholds moved, what each condition did, and the notes."""
    metrics = shown_metrics(scores)
    compared = any(condition.change for condition in scores.conditions)
    fired = [
        Text(f"  {c.label}: {firing_line(c)}", style="dim") for c in scores.conditions if c.firing
    ]
    warned = [Text(f"  ! {line}", style="yellow") for line in notes(scores)]
    key = f"Shares in percent, with 95 % intervals from a bootstrap over {scores.units}."
    if compared:
        flips = "Flips: − right to wrong, + wrong to right. " if scores.flips else ""
        key = (
            f"{_KEY.format(scores.units)} {flips}p belongs to {metric_name(metrics[0])}, after "
            "the slash Holm-adjusted over methods and groups."
        )
    if scores.seeds > 1:
        key = f"{key} Values are means over {scores.seeds} seeds, with their sd and range."
    thresholds = _thresholds(scores)
    table = _Fitting(scores, metrics)
    parts = [_title(scores), Text(key, style="dim"), table, *thresholds, *fired, *warned, ""]
    return Group(*parts)


def summary(runs: Sequence[TaskScores]) -> RenderableType:
    """Several tasks with a column per condition but controls; of groups only their mean."""
    conditions = [c for scores in runs for c in scores.conditions]
    labels = list(dict.fromkeys(c.label for c in conditions if c.control is None))
    parts: list[RenderableType] = []
    for scores in runs:
        rows = {row.condition.label: row for row in scores.sections[-1].rows}
        table = WholeWords(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", min_width=9)
        for label in labels:
            # As wide as most intervals, so that the tables stand in line; the settings of a
            # label that is wider go below its name.
            width = _INTERVAL if label in rows and rows[label].change else 4
            header = label if len(label) <= _INTERVAL else label.replace(":", ":\n", 1)
            table.add_column(header, min_width=width)
        for metric in shown_metrics(scores)[:3]:
            cells = [_cell(scores, rows.get(label), metric) for label in labels]
            table.add_row(metric_name(metric), *cells)
        parts += [_title(scores), table, *_threshold_lines(scores)]
    units = " or ".join(dict.fromkeys(scores.units for scores in runs))
    key = f"{_KEY.format(units)} Several groups are shown by their mean."
    return Group(*parts, Text(key, style="dim"), "")


class _Fitting:
    """The main table with as many metrics as fit beside readable labels."""

    def __init__(self, scores: TaskScores, metrics: Sequence[str]) -> None:
        self.scores, self.metrics = scores, metrics

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        metrics = list(self.metrics)
        while len(metrics) > 2 and not _main(self.scores, metrics).fits(console, options):
            metrics.pop()
        if not (table := _main(self.scores, metrics)).fits(console, options):
            # Written in lines, all have room.
            metrics, table = list(self.metrics), _main(self.scores, self.metrics)
        yield table
        if left := self.metrics[len(metrics) :]:
            names = ", ".join(metric_name(metric) for metric in left)
            yield Text(f"  A wider terminal also shows {names}.", style="dim")


def _main(scores: TaskScores, metrics: Sequence[str]) -> WholeWords:
    """Groups, totals and controls, a row per condition."""
    table = _table([metric_name(metric) for metric in metrics])
    if any(condition.change for condition in scores.conditions):
        table.add_column("flips\np/Holm" if scores.flips else "p/Holm", overflow="fold")
    # Pooled items say little that the groups and their mean don't; the report has them.
    sections = [section for section in scores.sections if section.title != POOLED]
    for section in sections:
        table.add_section()
        if len(sections) > 1:
            table.add_row(Text(section.title, style="bold"))
        for row in section.rows:
            if row.condition.control is None:
                table.add_row(*_cells(scores, row, metrics))
    controls = [row for row in sections[-1].rows if row.condition.control]
    if controls:
        table.add_section()
        where = f", {sections[-1].title}" if len(sections) > 1 else ""
        table.add_row(Text(f"controls{where}", style="bold"))
    for row in controls:
        table.add_row(*_cells(scores, row, metrics))
    return table


def _thresholds(scores: TaskScores) -> list[RenderableType]:
    """Accuracy beside what doesn't depend on a threshold, in the last section."""
    metrics = threshold_metrics(scores)
    if not metrics:
        return []
    table = _table(["accuracy", "at best threshold", metric_name(metrics[-1])])
    for row in scores.sections[-1].rows:
        cells = [_cell(scores, row, metric) for metric in metrics]
        table.add_row(_folding(row.condition.label), *cells)
    title = Text("  Only a moved yes/no threshold?", style="bold")
    return [title, table, *_threshold_lines(scores)]


def _threshold_lines(scores: TaskScores) -> list[RenderableType]:
    lines = [threshold_line(scores, row) for row in scores.sections[-1].rows]
    return [Text(f"  {line}", style="yellow") for line in lines if line]


def _table(columns: Sequence[str]) -> WholeWords:
    table = WholeWords(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Where it gets narrow, labels fold: a number that is cut off would be read as another one.
    table.add_column("", min_width=6, max_width=_LABEL, overflow="fold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _title(scores: TaskScores) -> Text:
    title = Text(scores.title, style="bold")
    size = f"{scores.scored} items, {scores.clusters} {scores.units}"
    about = f"  {scores.task}/{scores.profile}, {size}"
    return title.append(about, style="dim not bold")


def _folding(label: str) -> str:
    """A label that breaks between fields where it doesn't fit; `Condition.parse` reads it too."""
    return re.sub(r",(?![^\[]*\])", ", ", label)


def _cells(scores: TaskScores, row: Row, metrics: Sequence[str]) -> list[Text]:
    style = "dim" if row.condition.control else ""
    cells = [
        Text(_folding(row.condition.label), style=style),
        *(_cell(scores, row, metric) for metric in metrics),
    ]
    if row.change:
        change = row.change.metrics[metrics[0]]
        adjusted = "" if change.p_holm is None else f"/{p_value(change.p_holm)}"
        flips = f"−{len(row.change.lost)} +{len(row.change.gained)}\n" if scores.flips else ""
        cells.append(Text(f"{flips}{p_value(change.p)}{adjusted}"))
    return cells


def _cell(scores: TaskScores, row: Row | None, metric: str) -> Text:
    """The value and its change, and on a second line the interval of what is new."""
    if row is None:
        return Text("–")
    own = row.metrics[metric]
    cell = Text(number(scores, metric, own.value))
    ends = interval(scores, metric, own)
    if row.change:
        change, direction = row.change.metrics[metric], scores.directions[metric]
        moved = f" {number(scores, metric, change.delta, signed=True)}{mark(change, direction)}"
        cell.append(moved, style=_STYLES[verdict(change, direction)])
        ends = interval(scores, metric, change, signed=True)
    if metric != "words" and (row.change or len(scores.conditions) == 1):
        cell.append(f"\n{ends}", style="dim")
    if spread := seeds(scores, metric, own):
        cell.append(f"\n{spread}", style="dim")
    return cell
