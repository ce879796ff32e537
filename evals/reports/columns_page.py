"""The page about all methods in three worlds, from stored numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regaze.evals.reports.results_page import changed, table_row
from regaze.evals.scoring.thresholds import AUC

_SHOWN: Mapping[str, int] = {"accuracy": 1, AUC: 1, "yes_ratio": 0}
_TITLES = {"sandbox": "drawn scenes, `sandbox`", "smol": "scenes, `smol`"}


def page(stored: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        stored: As `regaze.evals.columns.columns` makes it.
        drawn: As `regaze.evals.results.results` makes it, of the drawn scenes.
    """
    tables = {"sandbox": _pope(drawn), **stored["tables"]}
    methods = sorted({*drawn["usual"], *stored["usual"]})
    usual = {name: (drawn if name == "sandbox" else stored)["usual"] for name in tables}
    parts = [_head(tables)]
    for metric, way in _SHOWN.items():
        lines = [
            f"## {_NAMES[metric]}",
            "",
            table_row("method", *(_title(name) for name in tables)),
            table_row("---", *("---:" for _ in tables)),
            table_row("none", *(_baseline(table, metric) for table in tables.values())),
        ]
        lines += [
            table_row(
                f"`{method}`",
                *(
                    _cell(table, usual[name].get(method), metric, way)
                    for name, table in tables.items()
                ),
            )
            for method in methods
        ]
        parts.append("\n".join(lines))
    left = [f"- `{name}`: {why}" for name, why in stored["left_out"].items()]
    parts.append("\n".join(["## Left out on `smol`", "", *(left or ["- nothing"])]))
    return "\n\n".join(parts) + "\n"


_NAMES = {"accuracy": "Accuracy", AUC: "AUC of the yes margin", "yes_ratio": "Share of yes"}


def _title(name: str) -> str:
    return _TITLES.get(name, "photographs, `smol`")


def _pope(drawn: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of POPE on prior-free scenes, which is the first."""
    found: Mapping[str, Any] = next(t for t in drawn["tables"] if t["task"] == "pope")
    return found


def _baseline(table: Mapping[str, Any], metric: str) -> str:
    first = next(iter(table["rows"].values()))
    return f"{100 * first['metrics'][metric]:.1f}"


def _cell(table: Mapping[str, Any], label: str | None, metric: str, way: int) -> str:
    if label is None:
        return "can't act"
    if label in table["silent"]:
        return "never acted"
    if label not in table["rows"]:
        return "not asked"
    return changed(table["rows"][label], metric, way)


def _head(tables: Mapping[str, Any]) -> str:
    sizes = ", ".join(
        f"{table['items']} questions about {table['scenes']} images ({_title(name)})"
        for name, table in tables.items()
    )
    return f"""# Results in three worlds

Every method for vision-language models as it comes, asked POPE: on the drawn scenes of the built-in
model `sandbox`, on prior-free scenes of [`smol`](../evals/sandbox/smol/README.md), whose language
model is a real one, and of `smol` on COCO's photographs. `make results-smol` makes this page; its
numbers are in [results-smol.json](results-smol.json) and [results.json](results.json).

- **Asked**: {sizes}; the mean of random, popular and adversarial questions. **So few questions
  decide little: the intervals are wide, and most include 0.**
- **Changes** are in points, with 95 % intervals from a paired bootstrap over images. ▲ better,
  ▼ worse, ● moved: the interval excludes 0; **bold**: also after Holm's correction.
- On photographs `smol` answers what it never saw one of: it knows them from its vision tower's
  classifier alone. See its card before reading anything into that column."""
