from __future__ import annotations

import pytest

from regaze.evals.runs.conditions import Condition, baseline_first, other_images
from regaze.interventions import PAI, VHR


def test_conditions_are_read_with_their_settings_and_compose_with_plus() -> None:
    assert Condition.parse("none") == Condition()
    assert Condition.parse("vhr:alpha=3") == Condition((VHR(alpha=3),))
    assert Condition.parse("vhr:alpha=3+pai:alpha=1e+0").specs == (VHR(alpha=3), PAI(alpha=1.0))
    assert Condition.parse("vhr:alpha=3+pai").label == "vhr:alpha=3+pai"
    assert Condition().label == "none"


def test_the_baseline_comes_first_and_only_once() -> None:
    vhr = Condition((VHR(),))
    assert baseline_first([vhr]) == [Condition(), vhr]
    assert baseline_first([vhr, Condition()]) == [Condition(), vhr]
    with pytest.raises(ValueError, match="given twice: vhr"):
        baseline_first([vhr, Condition.parse("vhr")])


def test_images_are_confused_in_a_fixed_way_that_leaves_none_in_its_place() -> None:
    keys = [f"image {n}" for n in range(7)]
    other = other_images(keys)
    assert other == other_images(reversed(keys))
    assert sorted(other.values()) == keys
    assert all(key != shown for key, shown in other.items())


def test_labels_say_what_is_shown() -> None:
    condition = Condition.parse("vhr:alpha=3+pai@blank")
    assert (condition.label, condition.image) == ("vhr:alpha=3+pai@blank", "blank")
    with pytest.raises(ValueError, match="did you mean blank"):
        Condition.parse("none@blnk")


def test_presets_and_what_is_shown_both_stand_behind_an_at() -> None:
    published = PAI.preset("llava-1.5-7b")
    assert Condition.parse("pai@llava-1.5-7b") == Condition((published,))
    both = Condition.parse("vhr+pai@llava-1.5-7b@blank")
    assert both == Condition((VHR(), published), "blank")
    assert both.label == "vhr+pai:gamma=1.1@blank"
    assert Condition.parse("pai@llava-1.5-7b:alpha=0.5+vhr@wrong").image == "wrong"
    with pytest.raises(ValueError, match="scalingvis has no presets.*blnk"):
        Condition.parse("scalingvis@blnk")
