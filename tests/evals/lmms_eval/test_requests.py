from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy import toy_model

from regaze.evals.lmms_eval.requests import (
    cut,
    from_context,
    from_messages,
    generation,
    interventions,
)
from regaze.interventions import PAI, VAR, VHR

MODEL, _ = toy_model()
RED, GREY = Image.new("RGB", (8, 8), "red"), Image.new("L", (4, 4), 128)
SHOWN = {"type": "image"}


def says(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


# Prompts


def test_images_come_before_the_text_and_as_rgb() -> None:
    prompt = from_context("How many?", [RED, GREY], "task t, document 0")
    assert prompt.messages == [{"role": "user", "content": [SHOWN, SHOWN, says("How many?")]}]
    assert [(image.mode, image.size) for image in prompt.images] == [
        ("RGB", (8, 8)),
        ("RGB", (4, 4)),
    ]


@pytest.mark.parametrize("nothing", [None, []])
def test_a_text_may_stand_alone(nothing: Any) -> None:
    prompt = from_context("How many?", nothing, "task t, document 0")
    assert (prompt.messages[0]["content"], prompt.images) == ([says("How many?")], [])


def test_images_stand_where_the_text_marks_them() -> None:
    prompt = from_context("Is <image> like <image>", [RED, GREY], "task t, document 0")
    assert prompt.messages[0]["content"] == [says("Is "), SHOWN, says(" like "), SHOWN]
    with pytest.raises(ValueError, match="document 0: the text marks 2 images, but shows 1"):
        from_context("Is <image> like <image>", [RED], "task t, document 0")


def test_turns_of_a_chat_are_kept(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    prompt = from_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image", "url": GREY}, says("What is <image>?")]},
            {"role": "assistant", "content": [says("Grey.")]},
            {
                "role": "user",
                "content": [says("And this?"), {"type": "image", "url": str(tmp_path / "red.png")}],
            },
        ],
        "task t, document 0",
    )
    assert [turn["role"] for turn in prompt.messages] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in prompt.messages] == [
        [says("Be brief.")],
        [says("What is "), SHOWN, says("?")],
        [says("Grey.")],
        [says("And this?"), SHOWN],
    ]
    assert [image.getpixel((0, 0)) for image in prompt.images] == [(128,) * 3, (255, 0, 0)]


@pytest.mark.parametrize(
    "shown",
    [
        {"type": "video", "url": "clip.mp4"},
        {"type": "audio", "url": "clip.mp3"},
        {"type": "image", "url": {"bytes": b""}},
    ],
)
def test_what_is_no_image_is_refused(shown: dict[str, Any]) -> None:
    message = "task t, document 7 shows .* regaze_hf answers questions about images and texts only"
    with pytest.raises(ValueError, match=message):
        from_messages([{"role": "user", "content": [shown]}], "task t, document 7")
    with pytest.raises(ValueError, match=message):
        from_context("What is this?", [shown["url"]], "task t, document 7")


# Settings


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0, "do_sample": False, "top_p": 1.0, "num_beams": 1},
        {"temperature": 0, "top_p": 0, "top_k": 0},
        {"do_sample": False, "temperature": 0.2},
        {"do_sample": True, "temperature": 0},
        {"image_aspect_ratio": "original", "until": ["\n\n"]},
    ],
)
def test_generation_is_greedy_unless_asked_otherwise(given: dict[str, Any]) -> None:
    config = generation(MODEL, given)
    assert (config.do_sample, config.num_beams, config.temperature) == (False, 1, None)
    assert config.max_new_tokens == 1024


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7, "top_p": 1.0}),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"top_p": 0.9, "top_k": 5}),
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0}),
        ({"num_beams": 3}, {"do_sample": False, "num_beams": 3}),
        ({"max_new_tokens": 16}, {"max_new_tokens": 16}),
        ({"max_gen_toks": 17}, {"max_new_tokens": 17}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ],
)
def test_settings_of_a_request_are_followed(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = generation(MODEL, given)
    assert {name: getattr(config, name) for name in expected} == expected


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="unknown generation setting 'temprature'; did you mean"):
        generation(MODEL, {"temprature": 1})


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, "a red ring. a star"),
        ([], "a red ring. a star"),
        ("", "a red ring. a star"),
        (".", "a red ring"),
        (["star", "ring"], "a red "),
        (["a"], ""),
        (["\n\n"], "a red ring. a star"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string(until: Any, expected: str) -> None:
    assert cut("a red ring. a star", until) == expected


# The intervention


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", ()),
        ("var:p=0.5", (VAR(p=0.5),)),
        ('"vhr:alpha=3,layers=[2,3]"', (VHR(alpha=3, layers=(2, 3)),)),
        ("'vhr:alpha=3+pai'", (VHR(alpha=3), PAI())),
    ],
)
def test_an_intervention_is_read_with_and_without_quotes(text: str, expected: Any) -> None:
    assert interventions(text) == expected


def test_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="lmms-eval chooses the images"):
        interventions("none@blank")
    with pytest.raises(ValueError, match="unknown intervention 'vahr'; did you mean"):
        interventions("vahr")


def test_a_method_that_changes_nothing_as_given_is_refused() -> None:
    with pytest.raises(ValueError, match="headscale changes nothing as it is given: set factor"):
        interventions("headscale")
