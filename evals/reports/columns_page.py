"""The page about all methods in several worlds, from stored numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regaze.evals.reports.columns_reading import IN_SHORT, READ_OF, READINGS, UNFIT
from regaze.evals.reports.results_page import changed, left_out, percent, table_row, tuned_rows
from regaze.evals.scoring.thresholds import AUC

_POPE: Mapping[str, int] = {"accuracy": 1, AUC: 1, "yes_ratio": 0}
_CHAIR: Mapping[str, int] = {"chair_i": -1, "precision": 1, "recall": 1}
_NAMES = {
    "accuracy": "Accuracy",
    AUC: "AUC of the yes margin",
    "yes_ratio": "Share of yes",
    "chair_i": "Captions: CHAIR_i",
    "precision": "Captions: precision, each object counted once",
    "recall": "Captions: recall",
}
_TITLES = {
    "sandbox": "drawn scenes, `sandbox`",
    "smol": "scenes, `smol`",
    "twin": "scenes, its twin",
    "photographs": "photographs, `smol`",
    "captions": "scenes, `smol`",
}
_GROUPS = ("seen", "unseen", "partner", "other")
_ASKED_ABOUT = ("seen", "unseen", "partner", "twin: partner", "other")

Table = Mapping[str, Any]


def page(stored: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        stored: As `regaze.evals.columns.columns` makes it.
        drawn: As `regaze.evals.results.results` makes it, of the drawn scenes.
    """
    asked = {where: t for where, t in stored["tables"].items() if where != "captions"}
    worlds = {"sandbox": _first(drawn, "pope"), **asked}
    told = {}
    if "captions" in stored["tables"]:
        told = {"sandbox": _first(drawn, "chair"), "captions": stored["tables"]["captions"]}
    parts = [_head(worlds, told), _readings(stored)]
    parts += [_changes(worlds, stored, drawn, name, way) for name, way in _POPE.items()]
    if told:
        for name, way in _CHAIR.items():
            kept = {where: table for where, table in told.items() if _keeps(table, name)}
            parts += [_changes(kept, stored, drawn, name, way)] if kept else []
        parts += [_wording(stored)]
    parts += [_tuned(stored)] if stored["tuned"] else []
    parts += [_moves(stored), _mass(stored), _left_out(stored)]
    return "\n\n".join(parts) + "\n"


def _first(drawn: Mapping[str, Any], task: str) -> Table:
    """The table of a task on prior-free scenes, which is the first."""
    found: Table = next(table for table in drawn["tables"] if table["task"] == task)
    return found


def _changes(
    worlds: Mapping[str, Table],
    stored: Mapping[str, Any],
    drawn: Mapping[str, Any],
    metric: str,
    way: int,
) -> str:
    """One metric of every method in every world."""
    methods = sorted({*drawn["usual"], *stored["usual"]})
    usual = {where: (drawn if where == "sandbox" else stored)["usual"] for where in worlds}
    lines = [
        f"## {_NAMES[metric]}",
        "",
        table_row("method", *(_TITLES[where] for where in worlds)),
        table_row("---", *("---:" for _ in worlds)),
        table_row("none", *(_baseline(table, metric) for table in worlds.values())),
    ]
    for method in methods:
        cells = (_cell(worlds[w], usual[w].get(method), metric, way) for w in worlds)
        lines.append(table_row(f"`{method}`", *cells))
    for method, label in _settings(stored).items():
        own = {w: drawn["tuned"].get(method, {}).get("with") for w in worlds if w == "sandbox"}
        cells = (_cell(worlds[w], own.get(w, label), metric, way) for w in worlds)
        lines.append(table_row(f"`{method}`, tuned", *cells))
    return "\n".join(lines)


def _wording(stored: Mapping[str, Any]) -> str:
    """The section on what becomes of captions."""
    lines = [
        "## Captions: what becomes of them",
        "",
        f"Of the {stored['tables']['captions']['items']} captions by `smol`: those that stay word "
        "for word, their mean length, those that run on past the length limit, and those that name "
        "something twice.",
        "",
        table_row("method", "unchanged", "tokens", "cut", "names twice"),
        table_row("---", *["---:"] * 4),
    ]
    names = _named(stored)
    for label, found in stored["why"]["captions"].items():
        same, cut, twice = (f"{100 * found[key]:.0f} %" for key in ("same", "cut", "twice"))
        name, tokens = names.get(label, "none"), f"{found['tokens']:.0f}"
        lines.append(table_row(name, same, tokens, cut, twice))
    return "\n".join(lines)


def _named(stored: Mapping[str, Any]) -> dict[str, str]:
    """Names of rows, by label."""
    names = {label: f"`{method}`" for method, label in stored["usual"].items()}
    return names | {label: f"`{m}`, tuned" for m, label in _settings(stored).items()}


def _settings(stored: Mapping[str, Any]) -> dict[str, str]:
    """Tuned settings that aren't the defaults, by method."""
    return {
        method: found["with"]
        for method, found in stored["tuned"].items()
        if found["with"] not in (None, stored["usual"][method])
    }


def _keeps(table: Table, metric: str) -> bool:
    """True if a table holds a metric: older ones lack what came later."""
    return metric in next(iter(table["rows"].values()))["metrics"]


def _baseline(table: Table, metric: str) -> str:
    first = next(iter(table["rows"].values()))
    return percent(first["metrics"][metric])


def _cell(table: Table, label: str | None, metric: str, way: int) -> str:
    if label is None:
        return "can't act"
    if label in table["silent"]:
        return "never acted"
    if label not in table["rows"]:
        return "not asked"
    return changed(table["rows"][label], metric, way)


def _head(worlds: Mapping[str, Table], told: Mapping[str, Table]) -> str:
    sizes = ", ".join(
        f"{table['items']} questions about {table['scenes']} images ({_TITLES[where]})"
        for where, table in worlds.items()
    )
    described = " and ".join(f"{t['scenes']} ({_TITLES[where]})" for where, t in told.items())
    captions = f" Described: {described}." if told else ""
    return f"""# Results in several worlds

Every method for vision-language models as it comes, asked POPE and for captions: on the drawn
scenes of the built-in model `sandbox`, on prior-free scenes of
[`smol`](../evals/sandbox/smol/README.md), whose language model is a real one, on the same scenes of
its twin that was trained without the prior, and of `smol` on COCO's photographs.
`make results-smol` makes this page; its numbers are in [results-smol.json](results-smol.json) and
[results.json](results.json), the readings in `evals/reports/columns_reading.py`.

- **Asked**: {sizes}; the mean of random, popular and adversarial questions.{captions} **So few
  decide little: the intervals are wide, and most include 0.**
- **Changes** are in points, with 95 % intervals from a paired bootstrap over images. ▲ better,
  ▼ worse, ● moved: the interval excludes 0; **bold**: also after Holm's correction.
- On photographs `smol` answers what it never saw one of: it knows them from its vision tower's
  classifier alone. See its card before reading anything into that column."""


def _readings(stored: Mapping[str, Any]) -> str:
    lines = ["## What was learnt", "", IN_SHORT, ""]
    if dict(READ_OF) != dict(stored["sizes"]):
        lines += ["Written about a run of other sizes than the tables below.", ""]
    known = [name for name in READINGS if name in stored["usual"]]
    lines += [f"- **`{name}`** {READINGS[name]}" for name in known]
    lines += ["", "`smol` is no test bed for:", ""]
    lines += [f"- **`{name}`** {why}" for name, why in UNFIT.items()]
    return "\n".join(lines)


def _tuned(stored: Mapping[str, Any]) -> str:
    lines = [
        "## Tuned settings",
        "",
        f"AUC on {stored['sizes']['validation']} validation scenes, the best of so few trials. "
        "These settings are asked of the twin and on photographs too; `sandbox` has its own.",
        "",
        table_row("method", "unedited", "as it comes", "tuned", "`--with`", "trials"),
        *tuned_rows(stored, "as it comes"),
    ]
    return "\n".join(lines)


def _moves(stored: Mapping[str, Any]) -> str:
    """The section of numbers behind the readings."""
    why, twin = stored["why"]["smol"], stored["why"].get("twin", {})
    asked = {group: why["none"]["questions"].get(group, 0) for group in _GROUPS}
    lines = [
        "## What moves",
        "",
        "Yes in percent, and in brackets the median change of the margin between yes and no, by "
        "what is asked about: an object that is there, in a picture that training showed "
        f"({asked['seen']} questions) or in an unseen one ({asked['unseen']}), the absent partner "
        f"of one that is there ({asked['partner']}), any other absent kind ({asked['other']}). "
        "Broken: answers that begin with neither word or run on past the length limit. Acts: "
        "edited layers, and the largest effect as reports measure it.",
        "",
        table_row("method", *_ASKED_ABOUT, "broken", "acts"),
        table_row("---", *["---:"] * 6, "---"),
    ]
    names = _named(stored)
    for label, found in why.items():
        cells = [_moved(found, group) for group in ("seen", "unseen", "partner")]
        cells.append(_moved(twin[label], "partner") if label in twin else "not asked")
        cells.append(_moved(found, "other"))
        cells.append(f"{100 * max(found['neither'], found['cut']):.0f} %")
        acts = found["acted"]
        where = f"{acts['layers']} layers, {acts['effect']:.2f} in {acts['layer']}" if acts else "–"
        lines.append(table_row(names.get(label, "none"), *cells, where))
    return "\n".join(lines)


def _moved(found: Mapping[str, Any], group: str) -> str:
    if group not in found["yes"]:
        return "–"
    shift = found["shift"][group]
    moved = "cut" if shift is None else f"{shift:+.1f}".replace("-", "−")
    return f"{100 * found['yes'][group]:.0f} ({moved})"


def _mass(stored: Mapping[str, Any]) -> str:
    lines = [
        "## Attention on the image, by layer",
        "",
        "Share of the last prompt row's attention, mean over heads, in percent.",
        "",
    ]
    lines += [f"- {_TITLES[w]}: {_row(found)}" for w, found in stored["visual_mass"].items()]
    return "\n".join(lines)


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{100 * value:.0f}" for value in values)


def _left_out(stored: Mapping[str, Any]) -> str:
    return "\n".join(["## Left out on `smol`", "", *(left_out(stored) or ["- nothing"])])
