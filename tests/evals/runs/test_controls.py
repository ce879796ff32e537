from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import controls, roles, with_controls
from regaze.interventions import PAG, PAI, SEG, VAF, VAR, VHR, Intervention, get, names


def labels(*texts: str) -> dict[str, str]:
    return {c.label: name for c, name in controls([Condition.parse(t) for t in texts]).items()}


def test_every_run_gets_a_wrong_and_a_blank_image() -> None:
    assert labels("none") == {"none@wrong": "wrong image", "none@blank": "blank image"}


def test_a_method_brings_controls_of_its_own_with_all_its_other_settings() -> None:
    found = labels("vhr:alpha=3,layers=[2,3]")
    assert found["vhr:alpha=3,layers=[2,3],heads=random"] == "random heads"
    assert found["vhr:alpha=3,layers=[2,3],heads=bottom"] == "bottom heads"


def test_of_combined_methods_one_at_a_time_is_replaced() -> None:
    found = labels("vhr+pai")
    assert [label for label in found if label.startswith("vhr")] == [
        "vhr:heads=random+pai",
        "vhr:heads=bottom+pai",
        "vhr+pai:alpha=-0.2",
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (PAI(), {"flipped sign": PAI(alpha=-0.2)}),
        (PAI(alpha=3), {}),
        (VAF(), {"flipped sign": VAF(enhance=0.85, suppress=1.05)}),
        (VAF(enhance=1, suppress=1), {}),
        (VAF(enhance=3), {}),
        # VAR's share is between 0 and 1: there is no sign to flip.
        (VAR(), {}),
        (VHR(heads="random"), {}),
        (PAG(), {"towards": PAG(scale=-3)}),
        (PAG(scale=0), {}),
        # Below 0 an adaptive scale stays at 0, and the paper's gamma has no mirror.
        (PAG(adaptive=0.01), {}),
        (SEG(scale=2), {"towards": SEG(scale=-2)}),
        (SEG(sense="paper"), {}),
    ],
)
def test_controls_stay_within_what_a_method_allows(
    spec: Intervention, expected: dict[str, Intervention]
) -> None:
    assert spec.controls() == expected


@pytest.mark.parametrize("name", names())
def test_a_control_has_no_controls_and_differs_from_its_method(name: str) -> None:
    spec = get(name)()
    for control in spec.controls().values():
        assert type(control) is type(spec)
        assert control != spec
        assert type(control) is type(spec)
        assert control.controls() == {}


def test_what_was_asked_for_stays_first_and_nothing_is_asked_twice() -> None:
    given = [Condition.parse(text) for text in ("vhr", "none@blank", "vhr:heads=random")]
    found = with_controls(given)
    assert found[:3] == given
    assert [c.label for c in found[3:]] == ["none@wrong", "vhr:heads=bottom"]


def test_roles_come_from_the_labels_of_a_run() -> None:
    assert roles(["none", "vhr", "vhr:heads=random", "vhr@wrong", "pai:alpha=-0.2"]) == {
        "vhr:heads=random": "random heads",
        "vhr@wrong": "wrong image",
    }


@dataclass(frozen=True)
class Unregistered(PAI):
    name: ClassVar[str] = "somewhere-else"


def test_a_method_that_is_not_registered_here_is_something_to_compare() -> None:
    assert roles(["none", Unregistered().label, "none@wrong"]) == {"none@wrong": "wrong image"}
