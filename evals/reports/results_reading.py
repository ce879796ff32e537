"""A short reading of the results of all methods: what is counted from stored intervals, no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.evals.reports.wording import metric_name
from regaze.evals.scoring.thresholds import AUC

Row = Mapping[str, Any]
_ALPHA = 0.05
_POPE, _CHAIR = "pope", "chair"


@dataclass(frozen=True)
class Entry:
    """A method's setting in one table.

    Attributes:
        name: The method's name, with "tuned" where the setting is.
        label: The setting.
        row: The setting's stored numbers.
        time: Processor time beside the unedited model's, None if it wasn't taken.
    """

    name: str
    label: str
    row: Row
    time: float | None

    def moved(self, metric: str, way: int) -> bool:
        """True if the interval of a change excludes 0 on one side, 1 above and -1 below."""
        change = self.row["changes"][metric]
        low, high = change["low"], change["high"]
        if low is None or round(100 * change["delta"], 1) == 0:
            return False
        return bool(low > 0 if way > 0 else high < 0)

    def holds(self, metric: str) -> bool:
        """True if a change is still one after Holm's correction."""
        change = self.row["changes"][metric]
        p = change["p"] if change["p_holm"] is None else change["p_holm"]
        return p is not None and p < _ALPHA

    def said(self, metric: str) -> str:
        """The setting and its change in points, with the interval."""
        change = self.row["changes"][metric]
        delta, low, high = (_points(change[name]) for name in ("delta", "low", "high"))
        return f"{self.name} {delta} [{low}, {high}]"


def learnt(stored: Mapping[str, Any]) -> str:
    """The findings of all tables together, as a section in Markdown."""
    lines = [
        "## What was learnt",
        "",
        "Counted from the tables below: a change is one whose interval excludes 0, and it *holds* "
        "if it still is one after Holm's correction. Where nothing is said the intervals "
        "leave it open.",
        "",
        *_ranking(stored, _usual, "As they come"),
        *_ranking(stored, _tuned, "Tuned"),
        *_luck(stored),
        *_captions(stored),
        *_price(stored),
        *_thresholds(stored),
        *_controls(stored),
    ]
    return "\n".join(lines)


Kind = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[Entry]]


def _usual(stored: Mapping[str, Any], table: Mapping[str, Any]) -> list[Entry]:
    times = stored["times"][table["task"]]
    named = stored["usual"].items()
    return [
        Entry(f"`{name}`", label, table["rows"][label], times.get(label))
        for name, label in named
        if table["rows"].get(label, {}).get("changes")
    ]


def _tuned(stored: Mapping[str, Any], table: Mapping[str, Any]) -> list[Entry]:
    found = []
    for name, search in stored["tuned"].items():
        label, row = search["with"], table["rows"].get(search["with"], {})
        if label != stored["usual"].get(name) and row.get("changes"):
            found.append(Entry(f"`{name}` tuned", label, row, None))
    return found


def _tables(stored: Mapping[str, Any], task: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for table in stored["tables"]:
        if table["task"] == task:
            yield short(table), table


def short(table: Mapping[str, Any]) -> str:
    """A table's scenes in short: with the prior, or free of it."""
    return "with the prior" if "follow" in table["title"] else "prior-free"


def _scenes(table: Mapping[str, Any]) -> str:
    return "scenes that follow the prior" if short(table) != "prior-free" else "prior-free scenes"


def _ranking(stored: Mapping[str, Any], kind: Kind, title: str) -> Iterator[str]:
    """The settings that tell present from absent better or worse."""
    for _, table in _tables(stored, _POPE):
        every = kind(stored, table)
        if every:
            up, down = (_who(every, AUC, way) for way in (1, -1))
            yield (
                f"- **{title}, {_scenes(table)}**: of {len(every)} settings AUC rises in "
                f"{up}; it falls in {down}."
            )


def _who(every: Sequence[Entry], metric: str, way: int) -> str:
    moved = [each for each in every if each.moved(metric, way)]
    if not moved:
        return "none"
    held = [each for each in moved if each.holds(metric)]
    named = ", ".join(f"{e.said(metric)}{' (holds)' if e in held else ''}" for e in moved)
    return f"{len(moved)}: {named}"


def _luck(stored: Mapping[str, Any]) -> Iterator[str]:
    """The number of gains on validation scenes that are found again on test scenes."""
    promised = [
        f"`{name}` tuned"
        for name, search in stored["tuned"].items()
        if search["objective"] == AUC
        and search["value"] is not None
        and search["with"] != stored["usual"].get(name)
        and search["value"] - search["baseline"] >= 0.01
    ]
    if not promised:
        return
    kept = []
    for where, table in _tables(stored, _POPE):
        gained = [e.name for e in _tuned(stored, table) if e.moved(AUC, 1) and e.name in promised]
        kept.append(f"{len(gained)} {where}")
    yield (
        f"- **Luck of the search**: {len(promised)} settings other than the defaults gained a "
        f"point of AUC or more on the validation scenes; on test scenes AUC rises in "
        f"{' and '.join(kept)}."
    )


def _captions(stored: Mapping[str, Any]) -> Iterator[str]:
    """The settings that name fewer absent objects, and those that name fewer present ones."""
    for _, table in _tables(stored, _CHAIR):
        every = [*_usual(stored, table), *_tuned(stored, table)]
        if every:
            lower, less = (_who(every, metric, -1) for metric in ("chair_i", "recall"))
            held = sum(e.moved("recall", -1) and e.holds("recall") for e in every)
            count = less.partition(":")[0]
            yield (
                f"- **Captions, {_scenes(table)}**: of {len(every)} settings "
                f"{metric_name('chair_i')} falls in {lower}; recall falls in {count}, and it holds "
                f"in {held}."
            )


def _price(stored: Mapping[str, Any]) -> Iterator[str]:
    """The price elsewhere of the settings that rank better."""
    gains: dict[str, tuple[str, float | None]] = {}
    costs: dict[str, list[str]] = {}
    for where, table in _tables(stored, _POPE):
        for each in (*_usual(stored, table), *_tuned(stored, table)):
            if each.moved(AUC, 1):
                gains.setdefault(each.label, (each.name, each.time))
            for metric in ("accuracy", AUC):
                if each.moved(metric, -1):
                    costs.setdefault(each.label, []).append(f"{metric_name(metric)} {where}")
    for where, table in _tables(stored, _CHAIR):
        for each in (*_usual(stored, table), *_tuned(stored, table)):
            paid = [("chair_i", 1), ("recall", -1)]
            for metric in (m for m, way in paid if each.moved(m, way)):
                costs.setdefault(each.label, []).append(f"{metric_name(metric)} {where}")
    if gains:
        said = []
        for label, (name, time) in gains.items():
            price = ", ".join(costs.get(label, ())) or "nothing"
            said.append(f"{name} {price}" + (f" (time {time:.2f})" if time else ""))
        yield f"- **What a better AUC costs**, by intervals: {'; '.join(said)}."


def _thresholds(stored: Mapping[str, Any]) -> Iterator[str]:
    """The settings whose accuracy moved and whose ranking didn't."""
    for _, table in _tables(stored, _POPE):
        moved = [
            each.said("accuracy")
            for each in (*_usual(stored, table), *_tuned(stored, table))
            for way in (1, -1)
            if each.moved("accuracy", way) and not (each.moved(AUC, 1) or each.moved(AUC, -1))
        ]
        if moved:
            yield (
                f"- **Accuracy that moved while AUC didn't, {_scenes(table)}**: {', '.join(moved)}."
            )


def _controls(stored: Mapping[str, Any]) -> Iterator[str]:
    """The methods that rank better as they come, beside their controls."""
    said = []
    for where, table in _tables(stored, _POPE):
        for each in _usual(stored, table):
            if not each.moved(AUC, 1):
                continue
            name = each.name.strip("`")
            controls = [
                Entry(f"{row['control']}", label, row, None).said(AUC)
                for label, row in table["rows"].items()
                if row["control"] and label.partition(":")[0] == name and row["changes"]
            ]
            beside = ", ".join(controls) or "none was asked"
            said.append(f"{each.said(AUC)} {where}, its control: {beside}")
    if said:
        yield f"- **Controls** of defaults whose AUC rises: {'; '.join(said)}."


def _points(value: float | None) -> str:
    if value is None:
        return "–"
    shown = round(100 * value, 1) + 0.0
    return f"{shown:+.1f}".replace("-", "−") if shown else "0.0"
