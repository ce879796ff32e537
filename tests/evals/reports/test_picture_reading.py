"""Reasons that stored scores give for methods that don't help."""

from __future__ import annotations

from typing import Any

import pytest

from regaze.evals.reports.picture_reading import why


def study(guidance: int, missing: float, subset: str = "composition", **rows: Any) -> Any:
    """Changes of metrics by label; those left out are +1 point with an interval around 0."""
    names = {"composition": ("missing", "leaked"), "negation": ("unwanted",)}[subset]
    metrics = ("right", "found", *names, "extra")

    def row(control: str | None, **moved: float) -> Any:
        changes = {
            name: {"delta": 0.01, "low": -0.02, "high": 0.04}
            | ({"delta": by, "low": by - 0.01, "high": by + 0.01} if by else {})
            for name in metrics
            for by in (moved.get(name, 0.0),)
        }
        return {"changes": changes, "control": control, "metrics": {}}

    found = {
        "none": {"metrics": {"missing": missing}, "changes": None, "control": None},
        "slg:scale=1.0": row(None, **rows.get("slg", {})),
        "slg:scale=-1.0": row("towards", **rows.get("control", {})),
        "slgs:scale=-1.0": row("towards", right=0.3),  # Another method's.
    }
    return {
        "model": "painter", "subset": subset, "guidance": guidance,
        "best": {"slg": "slg:scale=1.0"}, "tables": {"test": {"rows": found}},
    }  # fmt: skip


HELPS = {"right": 0.1, "missing": -0.05}


def test_what_guidance_repairs_by_itself_is_named() -> None:
    before, now = study(1, 0.182, slg=HELPS), study(3, 0.065)
    assert why("slg", now, [before, now]) == (
        "Without guidance it finds objects that are missing; guidance by itself leaves 6.5 % "
        "missing, for 18.2 % without."
    )
    none = "No other score moves."
    # It finds none without guidance either, or guidance leaves as many, or the painter is another.
    for other in (
        study(1, 0.182, slg={"right": 0.1}),
        study(1, 0.182, slg={**HELPS, "right": 0.0}),
        study(1, 0.182, slg={**HELPS, "missing": 0.05}),
        study(1, 0.05, slg=HELPS),
        study(3, 0.182, slg=HELPS),
        before | {"model": "other"},
        before | {"best": {}},
    ):
        assert why("slg", now, [other, now]) == none
    assert why("slg", before, [before, now]) != none


@pytest.mark.parametrize(("gained", "said"), [(0.11, True), (-0.11, False), (0.0, False)])
def test_a_control_that_gains_is_named(gained: float, said: bool) -> None:
    one = study(3, 0.1, control={"right": gained})
    led = "Its control, towards, gains: here it is led the wrong way."
    assert (why("slg", one, [one]) == led) is said
    one["tables"]["test"]["rows"]["slg:scale=-1.0"]["control"] = "random"
    led = "Its control, random, gains: here what the control lacks doesn't matter."
    assert (why("slg", one, [one]) == led) is said


def test_what_is_gained_here_and_lost_there_is_named() -> None:
    one = study(3, 0.1, "negation", slg={"unwanted": -0.163, "found": -0.211, "extra": 0.4})
    assert why("slg", one, [one]) == (
        "It improves unwanted (-16.3 [-17.3, -15.3]) and worsens found (-21.1 [-22.1, -20.1]) and "
        "extra (+0.40 [+0.39, +0.41])."
    )
    half = study(3, 0.1, "negation", slg={"unwanted": -0.163})
    assert why("slg", half, [half]) == "It improves unwanted (-16.3 [-17.3, -15.3]) alone."
    half = study(3, 0.1, "negation", slg={"right": -0.1, "extra": 0.4})
    assert why("slg", half, [half]) == "It worsens extra (+0.40 [+0.39, +0.41]) alone."
