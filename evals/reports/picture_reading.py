"""Why a method for diffusion models doesn't help where it doesn't, as far as stored scores say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN: Mapping[str, Mapping[str, int]] = {
    "composition": {"right": 1, "found": 1, "missing": -1, "leaked": -1, "extra": -1},
    "negation": {"right": 1, "found": 1, "unwanted": -1, "extra": -1},
}
"""Metrics of each subset, and which way is better."""
PLAIN = ("extra",)
"""Metrics that are no shares."""


def why(method: str, study: Mapping[str, Any], studies: Sequence[Mapping[str, Any]]) -> str:
    """Sentences on why a method's *right* doesn't gain in a study.

    Args:
        method: The method's name.
        study: The study.
        studies: All of them, this one among them.
    """
    found = [
        *_repaired(method, study, studies),
        *_opposed(method, study),
        *_traded(method, study),
    ]
    return " ".join(found or [_alone(method, study)])


def _repaired(
    method: str, study: Mapping[str, Any], studies: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What it repairs without guidance, guidance has repaired."""
    for other in studies:
        alike = all(study[key] == other[key] for key in ("model", "subset"))
        if not (alike and other["guidance"] == 1 < study["guidance"] and method in other["best"]):
            continue
        moved = _moved(method, other)
        if "missing" not in SHOWN[study["subset"]] or moved["right"] <= 0 or moved["missing"] <= 0:
            continue
        left, before = (_rows(one)["none"]["metrics"]["missing"] for one in (study, other))
        if left < before:
            yield (
                f"Without guidance it finds objects that are missing; guidance by itself leaves "
                f"{100 * left:.1f} % missing, for {100 * before:.1f} % without."
            )


def _opposed(method: str, study: Mapping[str, Any]) -> Iterator[str]:
    """Its control gains."""
    for label, row in _rows(study).items():
        if row["control"] and label.split(":")[0] == method and _way(row, "right", 1) > 0:
            opposite = row["control"] in ("towards", "away", "inverse")
            why = "it is led the wrong way" if opposite else "what the control lacks doesn't matter"
            yield f"Its control, {row['control']}, gains: here {why}."


def _traded(method: str, study: Mapping[str, Any]) -> Iterator[str]:
    """What it gains in one score it loses in another."""
    better, worse = (_others(method, study, side) for side in (1, -1))
    if better and worse:
        yield f"It improves {better} and worsens {worse}."


def _alone(method: str, study: Mapping[str, Any]) -> str:
    """What else moves, of a method that nothing is traded by."""
    for said, side in (("improves", 1), ("worsens", -1)):
        if others := _others(method, study, side):
            return f"It {said} {others} alone."
    return "No other score moves."


def _others(method: str, study: Mapping[str, Any], side: int) -> str:
    """The scores but *right* that a method makes better (1) or worse (-1), and how far."""
    changes = _rows(study)[study["best"][method]]["changes"]
    said = [
        f"{name} ({points(changes[name], name)})"
        for name, way in _moved(method, study).items()
        if way == side and name != "right"
    ]
    return ", ".join(said[:-1]) + (" and " if said[1:] else "") + "".join(said[-1:])


def _moved(method: str, study: Mapping[str, Any]) -> dict[str, int]:
    """By metric 1 if a method makes it better, -1 if worse, 0 if the interval holds 0."""
    row = _rows(study)[study["best"][method]]
    return {name: _way(row, name, way) for name, way in SHOWN[study["subset"]].items()}


def _way(row: Mapping[str, Any], metric: str, way: int) -> int:
    change = row["changes"][metric]
    if change["low"] is None or change["low"] <= 0 <= change["high"]:
        return 0
    return way if change["delta"] > 0 else -way


def _rows(study: Mapping[str, Any]) -> Mapping[str, Any]:
    rows: Mapping[str, Any] = study["tables"]["test"]["rows"]
    return rows


def points(change: Mapping[str, float], metric: str = "right") -> str:
    """A change in points, with its interval."""
    delta, low, high = (number(metric, change[key], "+") for key in ("delta", "low", "high"))
    return f"{delta} [{low}, {high}]"


def number(metric: str, value: float, sign: str = "") -> str:
    """A metric in points, or what is counted in a picture."""
    return f"{value:{sign}.2f}" if metric in PLAIN else f"{100 * value:{sign}.1f}"
