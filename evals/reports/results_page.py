"""The page about all methods on one model, from stored numbers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from regaze.evals.reports.results_reading import learnt, short
from regaze.evals.reports.wording import metric_name
from regaze.evals.scoring.statistics import Change
from regaze.evals.scoring.thresholds import AUC, reading

_SHOWN: Mapping[str, Mapping[str, int]] = {
    "pope": {"accuracy": 1, AUC: 1, "yes_ratio": 0},
    "chair": {"chair_i": -1, "recall": 1, "words": 0},
}
"""Metrics of each task, and which way is better."""
_READINGS = {"threshold": "moved threshold", "ranking": "ranking", "opposite": "threshold only"}
_ALPHA = 0.05
_NOTHING = "0.0"


def page(stored: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        stored: As `regaze.evals.results.results` makes it.
    """
    parts = [
        _head(stored),
        learnt(stored),
        _findings(stored),
        *(_task(stored, table) for table in stored["tables"]),
        _settings(stored),
        _left_out(stored),
    ]
    return "\n\n".join(parts) + "\n"


def _head(stored: Mapping[str, Any]) -> str:
    sizes = stored["sizes"]
    return f"""# Results

Every method for vision-language models on the built-in model `{stored["model"]}`, one baseline,
paired by construction. `make results` makes this page (at its usual sizes in 18 minutes of one
core) and goes on where it was stopped. Its numbers are in [results.json](results.json), and what
the methods are in [methods.md](methods.md).

- **Asked**: POPE on {sizes["pope"]} scenes (random, popular and adversarial questions; their mean
  is shown) and CHAIR on {sizes["chair"]}, of each of the sandbox's test splits: scenes free of the
  training's prior, and scenes that follow it. A method that merely removes the prior helps on the
  first and costs on the second.
- **Settings**: each method as it comes, and *tuned* by Optuna ({sizes["trials"]} trials, by the AUC
  of POPE's yes margin) on {sizes["validation"]} validation scenes, which no test asks. The fewer
  they are, the more is luck: see whether a tuned setting holds on the test scenes.
- **Heads** of methods that act on listed ones are found on validation scenes too: AD-HH's by its
  attribution, in captions, PASTA's by the margin of POPE's answers (`regaze discover heads-lvlm`).
- **Changes** are in points, with 95 % intervals from a paired bootstrap over scenes. ▲ better,
  ▼ worse, ● moved: the interval excludes 0; **bold**: also after Holm's correction for all
  conditions of the table. Changes that round to 0.0 bear no mark.
- **Only a moved threshold?** A method that says yes more often may gain accuracy without telling
  present from absent any better; AUC doesn't see that. Contrasts that rule implausible answers out
  (`beta`) make margins infinite, and ties count half in AUC.
- **Time** is processor time for an answer as `regaze eval` asks (questions on an image share its
  prefix where the method allows), beside the unedited model's, the least of some rounds taken in
  turn. POPE's answers are a word, CHAIR's a caption. Of so small a model much of it is overhead.
- This is a model of 1.9 M parameters on drawn scenes: it shows what a method does here, not how
  much it would do on a large one, for which the defaults were published.{_noted(stored)}"""


def _noted(stored: Mapping[str, Any]) -> str:
    """The stored note as a line of a list; empty where there is none."""
    return f"\n- {stored['note']}" if stored.get("note") else ""


def _findings(stored: Mapping[str, Any]) -> str:
    """The findings over all tables, method by method."""
    better: dict[str, list[str]] = {}
    worse: dict[str, list[str]] = {}
    compared = 0
    for table in stored["tables"]:
        for label, row in table["rows"].items():
            if row["control"] or not row["changes"]:
                continue
            changes = _changes(row)
            for metric, way in _SHOWN[table["task"]].items():
                if not way:
                    continue
                compared += 1
                change = changes[metric]
                number = _number(metric, change.delta)
                if change.excludes_zero and number != _NOTHING:
                    found = better if change.delta * way > 0 else worse
                    said = f"{metric_name(metric)} {number}"
                    said = f"**{said}**" if _holds(change) else said
                    found.setdefault(label, []).append(f"{said} ({short(table)})")
    return "\n".join(
        [
            "## By setting",
            "",
            f"Of {compared} comparisons those whose interval excludes 0, as about one in twenty "
            "does by chance; bold after Holm's correction. All others leave it open or come to "
            "0.0.",
            "",
            "Better:",
            "",
            *_list(better),
            "",
            "Worse:",
            "",
            *_list(worse),
        ]
    )


def _list(found: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"- `{label}`: {', '.join(each)}" for label, each in found.items()] or ["- nothing"]


def _holds(change: Change) -> bool:
    """True if a change is still one after Holm's correction."""
    return (change.p if change.p_holm is None else change.p_holm) < _ALPHA


def _task(stored: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    shown = _SHOWN[table["task"]]
    rows = table["rows"]
    (baseline, first), *_ = rows.items()
    names = [metric_name(metric) for metric in shown]
    ranked = AUC in shown
    values = [_value(metric, first["metrics"][metric]) for metric in shown]
    lines = [
        f"## {table['title']}",
        "",
        f"{table['items']} items about {table['scenes']} scenes"
        + (f"; {table['section']} groups." if ranked else "."),
        "",
        table_row("method", "", *names, *(["read as"] if ranked else []), "time"),
        table_row("---", "---", *("---:" for _ in names), *(["---"] if ranked else []), "---:"),
        table_row(f"`{baseline}`", "", *values, *([""] if ranked else []), "1"),
    ]
    for name, usual in stored["usual"].items():
        best = stored["tuned"].get(name, {}).get("with")
        for kind, label in (("default", usual), ("tuned", best)):
            if kind == "tuned" and (label is None or label == usual):
                continue
            time = stored["times"][table["task"]].get(label)
            lines.append(_line(table, name, kind, label, time))
    controls = [(label, row) for label, row in rows.items() if row["control"]]
    lines += [
        table_row(f"control: {row['control']}", f"`{label}`", *_cells(table, row), "")
        for label, row in controls
    ]
    return "\n".join(lines)


def _line(table: Mapping[str, Any], name: str, kind: str, label: str, time: float | None) -> str:
    empty = [""] * (len(_SHOWN[table["task"]]) + (AUC in _SHOWN[table["task"]]))
    if label in table["silent"]:
        return table_row(f"`{name}`", f"{kind}: never acted", *empty, "")
    if label not in table["rows"]:
        return table_row(f"`{name}`", f"{kind}: not asked", *empty, "")
    cells = _cells(table, table["rows"][label])
    return table_row(f"`{name}`", kind, *cells, "" if time is None else f"{time:.2f}")


def _cells(table: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    shown, changes = _SHOWN[table["task"]], _changes(row)
    cells = [_cell(metric, changes[metric], way) for metric, way in shown.items()]
    if AUC in shown:
        cells.append(_READINGS.get(reading(changes) or "", ""))
    return cells


def _changes(row: Mapping[str, Any]) -> dict[str, Change]:
    return {metric: _change(stored) for metric, stored in row["changes"].items()}


def changed(stored: Mapping[str, Any], metric: str, way: int) -> str:
    """The change of one metric of a stored row, as a cell.

    Args:
        stored: The row.
        metric: Name of the metric.
        way: +1 if more is better, -1 if less is, 0 if neither.
    """
    return _cell(metric, _changes(stored)[metric], way)


def _change(stored: Mapping[str, float | None]) -> Change:
    """The change that a row stores, where None stands for what is undefined."""
    delta, low, high, p = (
        math.nan if stored[name] is None else float(stored[name] or 0)
        for name in ("delta", "low", "high", "p")
    )
    return Change(math.nan, math.nan, delta, low, high, p, 0, p_holm=stored["p_holm"])


def _cell(metric: str, change: Change, way: int) -> str:
    if math.isnan(change.delta):
        return "–"
    low, high = _number(metric, change.low), _number(metric, change.high)
    said = f"{_number(metric, change.delta)} [{low}, {high}]"
    if not change.excludes_zero or _number(metric, change.delta) == _NOTHING:
        return said
    mark = "●" if not way else "▲" if change.delta * way > 0 else "▼"
    return f"**{said}** {mark}" if _holds(change) else f"{said} {mark}"


def _number(metric: str, value: float) -> str:
    shown = round(value if metric == "words" else 100 * value, 1) + 0.0
    return f"{shown:+.1f}".replace("-", "−") if shown else _NOTHING


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value if metric == 'words' else 100 * value:.1f}"


def _settings(stored: Mapping[str, Any]) -> str:
    lines = [
        "## Settings",
        "",
        "AUC on the validation scenes; it is the best of several and so too good.",
        "",
        table_row("method", "unedited", "default", "tuned", "`--with`", "unusable trials"),
        *tuned_rows(stored, "the default"),
    ]
    return "\n".join(lines)


def tuned_rows(stored: Mapping[str, Any], usual: str) -> list[str]:
    """A table of searched settings below its headings, method by method.

    Its columns are the method, a value each without it, with its usual and with its best setting,
    the best setting, and the trials.

    Args:
        stored: The page's numbers.
        usual: Stands for the best setting where that is the usual one.
    """
    lines = [table_row("---", "---:", "---:", "---:", "---", "---:")]
    for name, found in stored["tuned"].items():
        numbers = [percent(found[key]) for key in ("baseline", "usual", "value")]
        same = found["with"] in (None, stored["usual"][name])
        trials = (
            f"{found['refused']} of {found['trials']}" if "refused" in found else found["trials"]
        )
        lines.append(
            table_row(f"`{name}`", *numbers, usual if same else f"`{found['with']}`", str(trials))
        )
    return lines


def percent(value: float | None) -> str:
    """A share in percent; a dash where it is unknown."""
    return "–" if value is None else f"{100 * value:.1f}"


def left_out(stored: Mapping[str, Any]) -> list[str]:
    """Methods that weren't asked, and why, a line each; what looks like a tag is set as code."""
    said = {name: re.sub(r"<\w+>", r"`\g<0>`", why) for name, why in stored["left_out"].items()}
    return [f"- `{name}`: {why}" for name, why in said.items()]


def _left_out(stored: Mapping[str, Any]) -> str:
    lines = ["## Left out", ""]
    lines += left_out(stored)
    methods = {*stored["usual"].values(), *(t["with"] for t in stored["tuned"].values())}
    tables = [(set(table["silent"]), table["title"]) for table in stored["tables"]]
    for label in sorted(methods - {None}):
        where = [title for silent, title in tables if label in silent]
        if len(where) == len(tables):
            lines.append(f"- `{label}` never acted on these prompts, so nothing is reported of it")
        elif where:
            lines.append(f"- `{label}` never acted in {' and '.join(where)}")
    lines.append("- tools (`headscale`, `logitbias`, ...), which do nothing by default")
    return "\n".join(lines)


def table_row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
