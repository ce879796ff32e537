"""Scores as a Markdown table, to paste into a paper or a model card."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.evals.reports.wording import (
    interval,
    metric_name,
    notes,
    number,
    seeds,
    shown_metrics,
    threshold_line,
    threshold_metrics,
)
from regaze.evals.scoring.scores import Row, TaskScores


def markdown(runs: Sequence[TaskScores]) -> str:
    """One table per task: a row per condition, the total over its groups, intervals and controls.

    Values of the unedited model, and under them changes with 95 % intervals; an asterisk marks
    those that exclude zero.
    """
    return "\n\n".join(map(_task, runs)) + "\n"


def _task(scores: TaskScores) -> str:
    metrics = list(dict.fromkeys([*shown_metrics(scores), *threshold_metrics(scores)]))
    section = scores.sections[-1]
    about = f"{scores.scored:,} items about {scores.clusters:,} {scores.units}"
    if len(scores.sections) > 1:
        about += f", {section.title} groups"
    if scores.seeds > 1:
        about += f", means over {scores.seeds} seeds"
    lines = [
        f"**{scores.title}** (`{scores.task}/{scores.profile}`; {about})",
        "",
        _row("", *map(metric_name, metrics)),
        _row("---", *("---:" for _ in metrics)),
        *(_line(scores, row, metrics) for row in section.rows),
        "",
        "First row: percent, or as they are"
        if set(metrics) & set(scores.absolute)
        else "First row: percent",
    ]
    lines[-1] += (
        "; other rows: change in points with 95 % interval from a paired bootstrap over "
        f"{scores.units}; * excludes 0."
    )
    lines += [f"{line}." for row in section.rows if (line := threshold_line(scores, row))]
    return "\n".join([*lines, *(f"{line}." for line in notes(scores))])


def _line(scores: TaskScores, row: Row, metrics: Sequence[str]) -> str:
    control = f"control, {row.condition.control}: " if row.condition.control else ""
    return _row(
        f"{control}`{row.condition.label}`", *(_cell(scores, row, metric) for metric in metrics)
    )


def _cell(scores: TaskScores, row: Row, metric: str) -> str:
    if row.change is None:
        value = row.metrics[metric]
        spread = seeds(scores, metric, value)
        return number(scores, metric, value.value) + (f" ({spread})" if spread else "")
    change = row.change.metrics[metric]
    moved = number(scores, metric, change.delta, signed=True)
    if moved == "–":
        return moved
    star = r"\*" if change.excludes_zero else ""
    return f"{moved} {interval(scores, metric, change, signed=True)}{star}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
