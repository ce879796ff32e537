"""The wording of numbers and findings, the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from regaze.evals.scoring.scores import ConditionScores, Row, TaskScores
from regaze.evals.scoring.statistics import Change, Estimate
from regaze.evals.scoring.thresholds import AUC, BEST, DIRECTIONS, Reading, reading

Verdict = Literal["better", "worse", "moved", "open"]

_NAMES = {
    "f1": "F1",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "clip_score": "CLIPScore",
    "soft_tifa_gm": "Soft-TIFA GM",
    "soft_tifa_am": "Soft-TIFA AM",
    **{f"tifa_{skill}": f"TIFA {skill}" for skill in ("object", "attribute", "count", "verb")},
    "tifa_position": "TIFA position",
    "pickscore": "PickScore",
    "hpsv2": "HPSv2",
    "inception_score": "IS",
    **{name: name.upper() for name in ("ssim", "psnr", "lpips", "fid", "kid")},
    AUC: "AUC",
    BEST: "accuracy at best threshold",
}
_MARKS: Mapping[Verdict, str] = {"better": "▲", "worse": "▼", "moved": "●", "open": ""}
_READINGS: Mapping[Reading, str] = {
    "threshold": "AUC did not, so this may be no more than a moved yes/no threshold",
    "ranking": "AUC moved along, so the answers rank differently, not only the threshold",
    "opposite": "AUC moved the other way, so it comes from the threshold, not from better answers",
}
_RARE = 0.01


def metric_name(metric: str) -> str:
    """A metric's name for readers, e.g. ``yes ratio``."""
    return _NAMES.get(metric, metric.replace("_", " "))


def short_label(condition: ConditionScores) -> str:
    """A label for a plot; of a control its method and what was done to it."""
    if condition.control is None:
        return condition.label
    return f"{condition.label.partition(':')[0].partition('@')[0]} {condition.control}"


def shown_metrics(scores: TaskScores) -> list[str]:
    """The metrics that stand in a short table, the first one being the headline.

    AUC and best accuracy have a table of their own, see `threshold_metrics`. What is neither good
    nor bad (the length of yes and no) is left out where nothing moved it.
    """
    own = [m for m in scores.directions if m not in DIRECTIONS]
    changes = [row.change.metrics for row in scores.sections[-1].rows if row.change]
    return [
        metric
        for metric in scores.headline or own
        if metric in own
        and (scores.directions[metric] or not changes or any(c[metric].moved for c in changes))
    ]


def threshold_metrics(scores: TaskScores) -> list[str]:
    """Metrics that tell better answers from a moved threshold; none if no margins are known."""
    names = ["accuracy", BEST, AUC]
    return names if all(name in scores.directions for name in names) else []


def scale(scores: TaskScores, metric: str) -> int:
    """The factor of a metric as it is shown: shares are shown in percent."""
    return 1 if metric in scores.absolute else 100


def number(scores: TaskScores, metric: str, value: float | None, *, signed: bool = False) -> str:
    """A metric's value or change, with a dash where it is undefined.

    Shares are shown times 100, others as they are; one that isn't a count of words has two digits
    after the point unless it is in the hundreds, because it may move in a narrow range.
    """
    if value is None or math.isnan(value):
        return "–"
    fine = metric in scores.absolute and metric != "words" and abs(value) < 100
    digits = 2 if fine else 1
    shown = round(value * scale(scores, metric), digits) + 0.0
    return f"{shown:{'+' if signed and shown else ''}.{digits}f}".replace("-", "−")


def interval(
    scores: TaskScores, metric: str, value: Estimate | Change, *, signed: bool = False
) -> str:
    """The ends of a 95 % interval, e.g. ``[−0.2, +1.3]``."""
    low, high = (number(scores, metric, end, signed=signed) for end in (value.low, value.high))
    return f"[{low}, {high}]"


def seeds(scores: TaskScores, metric: str, value: Estimate | Change) -> str:
    """A value's spread over seeds, e.g. ``sd 0.4, 81.0 to 81.9``; empty for one seed."""
    if value.seeds is None:
        return ""
    found = (value.seeds.sd, value.seeds.low, value.seeds.high)
    sd, low, high = (number(scores, metric, each) for each in found)
    return f"sd {sd}, {low} to {high}"


def p_value(p: float | None) -> str:
    """A p-value with as many digits as it deserves."""
    if p is None or math.isnan(p):
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}"[1:] if p < 0.1 else f"{p:.2f}".removeprefix("0")


def verdict(change: Change, direction: int) -> Verdict:
    """The verdict on a change by the side on which its interval excludes zero."""
    if not change.excludes_zero:
        return "open"
    if direction == 0:
        return "moved"
    return "better" if change.delta * direction > 0 else "worse"


def mark(change: Change, direction: int) -> str:
    """A sign for `verdict`: better, worse or, where neither is better, moved."""
    return _MARKS[verdict(change, direction)]


def threshold_line(scores: TaskScores, row: Row) -> str | None:
    """A line on AUC beside a change of accuracy or F1; None for controls or without a change."""
    if row.change is None or row.condition.control:
        return None
    read = reading(row.change.metrics)
    if read is None:
        return None
    metrics = row.change.metrics
    scored = [name for name in ("accuracy", "f1") if name in metrics]
    moved = next(name for name in scored if metrics[name].excludes_zero)
    said = [
        f"{metric_name(name)} {number(scores, name, metrics[name].delta, signed=True)} "
        f"{interval(scores, name, metrics[name], signed=True)}"
        for name in (moved, AUC)
    ]
    return f"{row.condition.label}: {said[0]}; {_READINGS[read]} ({said[1]})"


def firing_line(condition: ConditionScores) -> str:
    """The effect of a condition's interventions, in one line."""
    if condition.firing is None:
        return "nothing attached"
    fired = [
        (one["label"].partition(":")[0], _fired(one)) for one in condition.firing["interventions"]
    ]
    line = fired[0][1] if len(fired) == 1 else "; ".join(f"{name} {said}" for name, said in fired)
    return f"{line}; asked without prefix sharing: {condition.apart}" if condition.apart else line


def notes(scores: TaskScores) -> list[str]:
    """The remarks that a reader needs besides the numbers."""
    lines = []
    if scores.scored < scores.asked:
        lines.append(
            f"{scores.scored} of {scores.asked} items are scored: those that every reported "
            "condition has answered"
        )
    if scores.failures:
        first = next(iter(scores.failures.items()))
        lines.append(f"{len(scores.failures)} items have no answer, e.g. {first[0]}: {first[1]}")
    if scores.yes_no and AUC not in scores.directions:
        lines.append(
            "no yes/no margins are stored with these answers, so whether a change is only a moved "
            "threshold can't be said"
        )
    for one in scores.conditions:
        if one.status == "unanswered":
            lines.append(f"{one.label} has no answers yet")
        if one.status == "silent":
            lines.append(
                f"{one.label} NEVER FIRED, so its answers are the unedited model's and no score "
                "is reported: check the layers and thresholds of its settings"
            )
        if one.score and one.truncated > _RARE * one.answered:
            lines.append(
                f"{one.label}: {one.truncated} of {one.answered} answers were cut at the length "
                "limit; raise --max-new-tokens"
            )
        lines += _doubtful(scores, one)
    return lines


def _doubtful(scores: TaskScores, one: ConditionScores) -> list[str]:
    """Metrics of the last section whose interval rests on too few replicates."""
    if one.score is None:
        return []
    metrics = list(one.score.sections.values())[-1]
    return [
        f"{one.label}: {metric_name(name)} is undefined in {metrics[name].dropped} of "
        f"{one.score.draws} bootstrap replicates, so its interval is doubtful"
        for name in shown_metrics(scores)
        if _RARE * one.score.draws < metrics[name].dropped < one.score.draws
    ]


def _fired(one: Mapping[str, Any]) -> str:
    acted = [layer for layer in one["layers"] if layer["effect"] > 0]
    if not one["fired"]:
        return "off by its settings" if one["exempt"] else "NEVER FIRED"
    steps = one.get("steps")
    over = f"{one['prompts']} prompts" if steps is None else f"{steps} sampling steps"
    return (
        f"fired in {len(acted)} of {len(one['layers'])} layers, mean effect {one['effect']:.3f} "
        f"over {over}"
    )
