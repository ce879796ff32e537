"""Effects of a method on the built-in models, from the stored numbers of the pages of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from builder.specs import ROOT

_METRICS = {
    "pope": {"accuracy": "accuracy", "auc": "AUC", "yes_ratio": "yes ratio"},
    "chair": {"chair_i": "CHAIR_i", "recall": "recall"},
}
_LONGEST = 70
_NOTHING = "0.0"
_DOCS = ROOT / "docs"


@cache
def _stored(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((_DOCS / name).read_text(encoding="utf-8"))
    return found


def labels(name: str) -> list[str]:
    """Specs of a method that were measured, the usual one first."""
    stored = _stored("results.json")
    tuned = stored["tuned"].get(name, {}).get("with")
    found = [stored["usual"].get(name), tuned, *(s["best"].get(name) for s in _studies())]
    return [label for label in found if label]


def language(name: str) -> list[str]:
    """Lines of Markdown about a method for vision-language models; none if it wasn't measured."""
    stored = _stored("results.json")
    usual = stored["usual"].get(name)
    if usual is None:
        return []
    tuned = stored["tuned"].get(name, {}).get("with")
    shown = [label for label in dict.fromkeys((usual, tuned)) if label and _acted(label)]
    if not shown:
        return ["It never acted on these prompts, so there is nothing to report.", ""]
    head = ["", *(f"`{_short(label)}`" for label in shown)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for table in stored["tables"]:
        for metric, title in _METRICS[table["task"]].items():
            changes = [_change(table, label, metric) for label in shown]
            lines.append(f"| {_title(table)}: {title} | " + " | ".join(changes) + " |")
    return [*lines, ""]


def _acted(label: str) -> bool:
    return any(label in table["rows"] for table in _stored("results.json")["tables"])


def _change(table: Mapping[str, Any], label: str, metric: str) -> str:
    change = (table["rows"].get(label, {}).get("changes") or {}).get(metric)
    return _points(change) if change and change["delta"] is not None else "–"


def _title(table: Mapping[str, Any]) -> str:
    prior = "with the prior" if "follow" in table["title"] else "prior-free"
    return f"{table['task'].upper()}, {prior}"


def diffusion(name: str) -> list[str]:
    """Lines of Markdown about a method for diffusion models; none if it wasn't measured."""
    lines = []
    for study in _studies():
        label = study["best"].get(name)
        rows = study["tables"]["test"]["rows"]
        if label in rows and rows[label]["changes"]:
            guided = "no guidance" if study["guidance"] == 1 else f"guidance {study['guidance']:g}"
            right = _points(rows[label]["changes"]["right"])
            plain = f"{100 * rows['none']['metrics']['right']:.1f}"
            where = f"`{study['model']}`, {study['subset']}, {guided}"
            lines.append(f"| {where} | `{_short(label)}` | {plain} | {right} |")
    head = [
        "| where | settings | right, plain | change, with a 95 % interval |",
        "|---|---|---|---|",
    ]
    return [*head, *lines] if lines else []


def times(name: str) -> list[str]:
    """A method's cost on the built-in models relative to the unedited one, one line each."""
    stored = _stored("results.json")
    label = stored["usual"].get(name)
    said = [
        f"an answer to {task.upper()} takes {stored['times'][task][label]:g} times as long"
        for task in stored["times"]
        if label in stored["times"][task]
    ]
    for study in _studies():
        if study["best"].get(name) in study["times"]:
            said.append(
                f"a picture of `{study['model']}` at guidance {study['guidance']:g} takes "
                f"{study['times'][study['best'][name]]:g} times as long"
            )
    return said


def losses(name: str) -> list[str]:
    """Scores that its defaults made worse on the built-in model, clearly."""
    stored = _stored("results.json")
    label, found = stored["usual"].get(name), []
    for table in stored["tables"]:
        for metric, way in (("accuracy", 1), ("auc", 1), ("chair_i", -1), ("recall", 1)):
            change = (table["rows"].get(label, {}).get("changes") or {}).get(metric)
            if change and change["delta"] is not None:
                p = change["p"] if change["p_holm"] is None else change["p_holm"]
                lost = change["delta"] * way < 0 and _signed(change["delta"]) != _NOTHING
                if p < 0.05 and lost:
                    title = _METRICS[table["task"]][metric]
                    found.append(f"{title} {_points(change)} ({_title(table)})")
    return found


def _studies() -> list[Mapping[str, Any]]:
    studies: list[Mapping[str, Any]] = _stored("picture-results.json")["studies"]
    return studies


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 20]} ... {label[-15:]}"


def _points(change: Mapping[str, float]) -> str:
    delta, low, high = (_signed(change[name]) for name in ("delta", "low", "high"))
    sign = "" if change["low"] <= 0 <= change["high"] or delta == _NOTHING else "*"
    return f"{delta} [{low}, {high}]{sign}"


def _signed(share: float) -> str:
    number = f"{100 * share:+.1f}"
    return _NOTHING if number in ("+0.0", "-0.0") else number
