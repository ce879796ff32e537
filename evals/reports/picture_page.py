"""The page about methods for diffusion models on the painters, from stored numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regaze.evals.reports.picture_reading import SHOWN, number, points, why

_ALPHA = 0.05
_LONGEST = 90


def page(stored: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        stored: As `regaze.evals.picture_results` makes it.
    """
    studies = stored["studies"]
    parts = [
        _head(stored),
        _findings(studies),
        *(_study(one) for one in studies),
        *_sweeps(studies),
    ]
    return "\n\n".join(parts) + "\n"


def _head(stored: Mapping[str, Any]) -> str:
    sizes = stored["sizes"]
    return f"""# Results of methods for diffusion models

Methods on the built-in [painters](../evals/sandbox/README.md#painting), one baseline for each
table, paired by construction: every condition starts from the same noise. `make picture-results`
makes this page and goes on where it was stopped; its numbers are in
[picture-results.json](picture-results.json). Results of methods for vision-language models are in
[results.md](results.md).

- **Asked**: `composition`, what painters get wrong most (three objects, or two that share a
  colour or a shape), and `negation`, one or two objects *without* another one. A painter is asked
  for "a blue square and a red circle" with the negative prompt "a red circle": text encoders read
  "without" as "and". *Right* is a picture with all that is wanted and without the unwanted;
  anything further counts as *extra*.
- **Settings** are those with the most right pictures on validation prompts
  ([below](#what-was-tried)). Then test prompts were painted once, {sizes["steps"]} steps in
  {stored["dtype"]}, a picture each. PAG, SEG, SoftPAG, Attend-and-Excite and A-STAR take their
  settings from the painters' cards
  ([MM-DiT](../evals/sandbox/models/painter-mmdit/README.md),
  [U-Net](../evals/sandbox/models/painter-unet/README.md)), which have their sweeps; what
  moved nothing on the U-Net's validation prompts (SEG; SoftPAG beside guidance) is left out;
  FlowWarp is in the
  [ControlNet's](../evals/sandbox/models/painter-controlnet/README.md), and methods of video are in
  that of the [painter of clips](../evals/sandbox/models/painter-motion/README.md). Edits and
  compositions are in [pictures.md](pictures.md#edits).
- **Changes** are in points, with 95 % intervals from a paired bootstrap over prompts. ▲ better, ▼
  worse, ● moved: the interval excludes 0; **bold**: also after Holm's correction for all
  conditions of the table.
- **Time** is processor time of a picture beside the unedited pipeline's, the least of some rounds
  taken in turn. At 32 x 32 pixels much of it is overhead.
- These are models of five million parameters on drawn scenes, one training run each: they show
  that a method's mechanism works and is measured rightly, not how much it would do on a large
  model."""


def _findings(studies: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[str]] = {"Helps": [], "Shows nothing": [], "Harms": []}
    for study in studies:
        table = study["tables"]["test"]
        for method, label in study["best"].items():
            change = table["rows"].get(label, {}).get("changes")
            if not change:
                continue
            right = change["right"]
            kind = "Shows nothing" if right["low"] <= 0 <= right["high"] else (
                "Helps" if right["delta"] > 0 else "Harms"
            )  # fmt: skip
            said = f"`{method}` ({_where(study)}) {points(right)}"
            others = [
                f"{label_of} {points(row['changes']['right'])}"
                for name, row in table["rows"].items()
                if row["control"] and name.split(":")[0] == label.split(":")[0]
                for label_of in (f"its control, {row['control']},",)
            ]
            line = "; ".join([said, *others])
            kinds[kind].append(
                line if kind == "Helps" else f"{line}. {why(method, study, studies)}"
            )
    lines = [
        "## In short",
        "",
        "Changes of *right*, in points, on test prompts. Where nothing is gained, what these "
        "scores say about why.",
    ]
    for kind, found in kinds.items():
        lines += ["", f"{kind}:", "", *(f"- {one}" for one in found or ["nothing"])]
    return "\n".join(lines)


def _where(study: Mapping[str, Any]) -> str:
    guidance = "no guidance" if study["guidance"] == 1 else f"guidance {study['guidance']:g}"
    return f"{study['model']}, {study['subset']}, {guidance}"


def _study(study: Mapping[str, Any]) -> str:
    table = study["tables"]["test"]
    return "\n".join(
        [f"## {_where(study)}", "", f"{table['prompts']} test prompts.", "",
         *_table(study, table, study["times"])]
    )  # fmt: skip


def _sweeps(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        "## What was tried\n\nOn validation prompts; the best of each method was painted above."
    ]
    for study in studies:
        table = study["tables"]["validation"]
        lines = [f"### Validation: {_where(study)}", "", f"{table['prompts']} prompts.", ""]
        found.append("\n".join([*lines, *_table(study, table, None)]))
    return found


def _table(
    study: Mapping[str, Any], table: Mapping[str, Any], times: Mapping[str, float] | None
) -> list[str]:
    shown = SHOWN[study["subset"]]
    ends = ["time"] if times is not None else []
    lines = [
        _row("settings", *shown, *ends),
        _row("---", *("---:" for _ in shown), *("---:" for _ in ends)),
    ]
    for label, row in table["rows"].items():
        name = f"control, {row['control']}: {_code(label)}" if row["control"] else _code(label)
        cells = [_cell(metric, way, row) for metric, way in shown.items()]
        if times is not None:
            time = 1 if not row["changes"] else times.get(label)
            cells.append("" if time is None else f"{time:g}")
        lines.append(_row(name, *cells))
    return lines


def _cell(metric: str, way: int, row: Mapping[str, Any]) -> str:
    value = row["metrics"][metric]
    if value is None:
        return ""
    shown = number(metric, value)
    change = row["changes"] and row["changes"][metric]
    if not change or change["low"] is None:
        return shown
    said = f"{shown}, {points(change, metric)}"
    if not change["low"] <= 0 <= change["high"]:
        said += "●" if not way else "▲" if change["delta"] * way > 0 else "▼"
    p = change["p"] if change["p_holm"] is None else change["p_holm"]
    holds = p is not None and p < _ALPHA
    return f"**{said}**" if holds else said


def _code(label: str) -> str:
    """A label in code, the middle left out where it is too long for a table."""
    short = label
    if len(label) > _LONGEST:
        half = _LONGEST // 2
        short = f"{label[:half]} ... {label[-half:]}"
    return f"`{short}`"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
