"""ask: one question, with and without methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call, one_line

from regaze.evals.sandbox.scenes import scene

FIXED = ("--model", "sandbox", "--max-new-tokens", "6")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    scene("test", 5).image.save(path)
    return str(path)


def test_answers_margins_and_reports_as_json(picture: str) -> None:
    told = call(
        *("ask", *FIXED, "-i", picture, "-p", "Is there a red square in the image?"),
        *("--with", "pai:alpha=0.9", "--json"),
    )
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["answers"]
    assert [one["condition"] for one in found] == ["none", "pai:alpha=0.9"]
    assert all(one["answer"] in ("yes", "no") for one in found)
    assert all((one["margin"] > 0) == (one["answer"] == "yes") for one in found)
    assert found[0]["firing"] is None and found[1]["firing"]["fired"]


def test_without_a_picture_a_method_for_pictures_is_silent_and_the_code_says_so() -> None:
    told = call("ask", *FIXED, "-p", "Describe the image.", "--with", "pai")
    assert told.exit_code == 1
    assert "never fired" in told.stderr and "NEVER FIRED" in told.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--with", "pai@blank"), "a control image is for regaze eval"),
        (("--image", "gone.png"), "--image gone.png can't be read"),
        (("--with", 'icd:prefix="a, b'), "a quotation mark isn't closed"),
        (("--with", "pia"), "did you mean pai"),
        (("--prompt", " "), "--prompt is empty"),
        (("--max-new-tokens", "999999999"), "ask for fewer (--max-new-tokens)"),
        (("--with", "carve"), "carve changes what is asked about a picture: give one"),
        (("--with", "pai", "--with", "vhr:layers=[99]"), "layers holds 99"),
        (("--with", "pai", "--with", "pasta"), "points at a part of the prompt"),
    ],
)
def test_mistakes(more: tuple[str, ...], message: str) -> None:
    told = call("ask", *FIXED, "-p", "Is it?", *more)
    assert told.exit_code == 2 and message in one_line(told)
    assert told.stdout == ""


def test_commas_and_signs_inside_quotes_belong_to_a_value(picture: str) -> None:
    told = call(
        *("ask", *FIXED, "-i", picture, "-p", "Describe the image."),
        *("--with", 'icd:prefix="You, +pai @blank [",alpha=2+pai', "--json"),
    )
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["answers"][1]
    assert [one["label"].partition(":")[0] for one in found["firing"]["interventions"]] == [
        "icd",
        "pai",
    ]


def test_one_seed_is_written_with_a_comma() -> None:
    from regaze.cli.pipelines import read_seeds

    assert read_seeds("7,") == [7]
    assert read_seeds("3") == [0, 1, 2]
    with pytest.raises(ValueError, match="--seeds"):
        read_seeds(",")
