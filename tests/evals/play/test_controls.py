"""Each field of each method has a control, whose values give the spec back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from regaze.evals.play.controls import Control, controls, read, show
from regaze.interventions.base import Intervention, get, names

OTHERS: dict[str, Any] = {
    "flag": lambda one: not one.default,
    "choice": lambda one: next(x for x in one.choices if x != one.shown(one.default)),
    "number": lambda one: one.low if one.low not in (None, one.default) else one.default,
    "slider": lambda one: one.low if one.low != one.default else one.high,
    "line": lambda one: "a word, and another",
    "text": lambda one: one.shown(one.default),
}


def by_name(cls: type[Intervention]) -> dict[str, Control]:
    return {one.field: one for one in controls(cls)}


@pytest.mark.parametrize("name", names())
def test_every_field_has_a_control(name: str) -> None:
    cls = get(name)
    spec = cls()
    made = controls(cls)
    assert [one.field for one in made] == [field.name for field in dataclasses.fields(cls)]
    assert [one.field for one in made if not one.info] == []
    assert read(cls, show(spec)) == spec
    for place, one in enumerate(made):
        given = show(spec)
        given[place] = OTHERS[one.kind](one)
        try:
            changed = read(cls, given)
        except ValueError as error:  # It doesn't go with the other fields.
            assert name in str(error).lower().replace("-", "").replace("&", "_and_"), error
            continue
        assert read(cls, show(changed)) == changed


def test_domains_types_and_docs_come_from_the_spec() -> None:
    vhr = by_name(get("vhr"))
    assert vhr["alpha"] == Control(
        "alpha",
        "number",
        2.0,
        "Factor; 2 in the paper. 1 is a no-op; at 4 and more text breaks down.",
        low=0,
        high=100,
    )
    assert (vhr["unbiased"].kind, vhr["unbiased"].default) == ("flag", True)
    assert (vhr["heads"].kind, vhr["heads"].choices) == ("choice", ("top", "bottom", "random"))
    assert (vhr["layers"].kind, vhr["layers"].optional) == ("text", True)
    var = by_name(get("var"))
    assert (var["rho"].kind, var["rho"].low, var["rho"].high, var["rho"].step) == (
        "slider",
        0,
        1,
        0.005,
    )
    # None by default, so its domain shows only where it is set.
    assert (var["tau"].kind, var["tau"].optional, var["tau"].high) == ("number", True, 1)
    seg = by_name(get("seg"))
    assert seg["sense"].choices == ("code", "paper")  # A plain str whose check names these.
    assert by_name(get("radial"))["sink"].choices == ("", "true", "false")
    assert by_name(get("vcd"))["step"].whole


def test_what_controls_hold_is_read() -> None:
    vhr = get("vhr")
    spec = read(vhr, [3, "[1, 2]", "mask", False, True, "random"])
    assert spec == vhr(
        alpha=3.0, layers=(1, 2), null_image="mask", outlier_filter=False, heads="random"
    )  # type: ignore[call-arg]
    assert show(spec) == [3.0, "[1,2]", "mask", False, True, "random"]
    var = get("var")
    given = show(var(tau=0.25))  # type: ignore[call-arg]
    assert read(var, given).to_dict()["tau"] == 0.25
    given[2] = None
    assert read(var, given) == var()
    radial = get("radial")
    given = show(radial(sink=False))  # type: ignore[call-arg]
    assert given[1] == "false" and read(radial, given).to_dict()["sink"] is False


def test_a_slider_that_was_not_moved_gives_the_default() -> None:
    regions = get("regions")
    one = by_name(regions)["stop"]
    assert one.kind == "slider" and one.step == 0.005
    shown = round(one.default / one.step) * one.step
    assert shown != one.default and one.read(shown) == one.default
    assert math.isclose(one.read(shown + one.step), shown + one.step)


def test_mistakes_name_field_and_domain() -> None:
    given = show(get("vhr")())
    given[0] = 101
    with pytest.raises(ValueError, match=r"vhr: alpha must be a finite number in \[0, 100\]"):
        read(get("vhr"), given)
    given[0] = None
    with pytest.raises(ValueError, match="alpha needs a number"):
        read(get("vhr"), given)
    given = show(get("pai")())
    given[1] = "[0, x"
    with pytest.raises(ValueError, match="layers must be a list"):
        read(get("pai"), given)
