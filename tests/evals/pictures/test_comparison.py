from __future__ import annotations

import json

import pytest
import tiny_painter

from regaze.evals.pictures import comparison
from regaze.evals.pictures.render import NOISE, Shot

SHOTS = [Shot("a red circle", 0), Shot("a blue cross", 5), Shot("a red circle", 1)]


def test_columns_start_from_the_same_noise_and_only_differ_by_the_method() -> None:
    loaded = tiny_painter.shared()
    columns = comparison.parse(["none", "softpag:u=0", "softpag:u=1"])
    seen: list[tuple[str, int, int]] = []
    none, zero, one = comparison.compare(
        loaded,
        columns,
        SHOTS,
        tiny_painter.CALL,
        batch_size=2,
        progress=lambda *step: seen.append(step),
    )
    assert [p.image.tobytes() for p in none.pictures] == [p.image.tobytes() for p in zero.pictures]
    assert [p.image.tobytes() for p in none.pictures] != [p.image.tobytes() for p in one.pictures]
    assert (none.firing, none.silent, one.silent) == (None, False, False)
    assert seen[:3] == [("none", 0, 3), ("none", 2, 3), ("none", 3, 3)]
    again, *_ = comparison.compare(loaded, {"none": columns["none"]}, SHOTS, tiny_painter.CALL)
    assert len(again.pictures) == 3


def test_the_description_is_json_and_holds_resolved_settings() -> None:
    loaded = tiny_painter.shared()
    columns = comparison.compare(
        loaded, comparison.parse(["pag"]), SHOTS[:1], tiny_painter.CALL, batch_size=1
    )
    about = comparison.describe(loaded, columns, ["a red circle"], [0], tiny_painter.CALL)
    assert json.loads(json.dumps(about)) == about
    assert about["settings"]["num_inference_steps"] == 2
    assert about["noise"] == NOISE
    ((spec,),) = (column["interventions"] for column in about["columns"])
    assert spec["name"] == "pag"
    assert spec["layers"] is not None


def test_a_method_that_does_not_fit_is_refused_before_the_first_picture() -> None:
    painted: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match=r"up_blocks\.7"):
        comparison.compare(
            tiny_painter.shared(),
            comparison.parse(["none", 'pag:layers=["up_blocks.7"]']),
            SHOTS,
            tiny_painter.CALL,
            progress=lambda *step: painted.append(step),
        )
    assert painted == []


def test_a_sweep_takes_the_place_of_its_method_and_names_the_swept_value() -> None:
    found = comparison.parse(["none", "softpag:scale=2"], ["softpag.u=0,0.5,1"])
    assert list(found) == [
        "none",
        "softpag:scale=2,u=0",
        "softpag:scale=2,u=0.5",
        "softpag:scale=2,u=1",
    ]
    assert [getattr(c.specs[0], "u") for c in list(found.values())[1:]] == [0, 0.5, 1]  # noqa: B009


def test_a_sweep_of_another_method_comes_last_and_two_sweeps_cross() -> None:
    assert list(comparison.parse(["none"], ["pag.scale=1,3"])) == [
        "none",
        "pag:scale=1",
        "pag:scale=3",
    ]
    assert len(comparison.parse(["softpag"], ["softpag.u=0,1", "softpag.scale=1,2,4"])) == 6
    lists = comparison.parse([], ['pag.layers=["mid"],["up_blocks.0","mid"]'])
    assert list(lists) == ["pag:layers=[mid]", "pag:layers=[up_blocks.0,mid]"]


@pytest.mark.parametrize(
    ("conditions", "sweeps", "message"),
    [
        ([], [], "nothing to compare"),
        (["pag", "pag"], [], "given twice: pag"),
        (["none@blank"], [], "for models that read an image"),
        (["none"], ["softpag"], "expected METHOD.FIELD=VALUE"),
        (["none"], ["softpag.v=1"], "unknown field of softpag 'v'"),
        (["none"], ["softpat.u=1"], "did you mean softpag"),
        (["none"], ["softpag.u=1.5"], "u must be a finite number in"),
        (["none"], ["softpag.u=0,0"], "given twice"),
    ],
)
def test_columns_that_make_no_sense_are_refused(
    conditions: list[str], sweeps: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        comparison.parse(conditions, sweeps)
