"""The sandbox's tokenizer and processor: every prompt and caption in known words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from regaze.evals.sandbox.build import IMAGE_TOKENS, build_processor
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES, scene
from regaze.evals.sandbox.text import CAPTION_PROMPT, LONG_CAPTION_PROMPT, caption, question

PHRASES = [*SHAPES, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("processor")
    build_processor().save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def _chat(processor: Any, text: str) -> str:
    content = [{"type": "text", "text": text}, {"type": "image"}]
    message = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(message, add_generation_prompt=True))


def test_the_chat_template_puts_the_image_first(processor: Any) -> None:
    assert _chat(processor, CAPTION_PROMPT) == "USER: <image>\nDescribe the image. ASSISTANT:"


def test_the_chat_template_keeps_earlier_turns(processor: Any) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red moon."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is there an arrow?"}]},
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "USER: <image>\nDescribe the image. ASSISTANT: a red moon.</s>"
        "USER: Is there an arrow? ASSISTANT:"
    )


@pytest.mark.parametrize("text", [CAPTION_PROMPT, LONG_CAPTION_PROMPT, *map(question, PHRASES)])
def test_every_prompt_is_made_of_known_words(processor: Any, text: str) -> None:
    ids = processor.tokenizer(_chat(processor, text))["input_ids"]
    assert processor.tokenizer.unk_token_id not in ids
    assert ids[0] == processor.tokenizer.bos_token_id


def test_a_caption_survives_the_round_trip(processor: Any) -> None:
    for index in range(50):
        text = caption([item.phrase for item in scene("train", index).objects])
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids) == text


def test_a_caption_lists_its_objects_as_a_sentence() -> None:
    assert caption(["red moon"]) == "a red moon."
    assert caption(["red moon", "blue star"]) == "a red moon and a blue star."
    assert caption(["red moon", "blue star", "white ring"]) == (
        "a red moon, a blue star and a white ring."
    )


def test_the_article_suits_the_first_letter() -> None:
    assert question("arrow") == "Is there an arrow in the image?"
    assert question("green arrow") == "Is there a green arrow in the image?"


def test_the_processor_makes_one_token_per_patch(processor: Any) -> None:
    image = scene("test", 0).image
    inputs = processor(images=image, text=_chat(processor, CAPTION_PROMPT), return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == IMAGE_TOKENS == 64
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(inputs["pixel_values"][0].numpy(), expected, atol=1e-6)


def test_other_image_sizes_are_brought_to_size(processor: Any) -> None:
    image = scene("test", 0).image.resize((200, 150))
    inputs = processor(images=image, text=_chat(processor, CAPTION_PROMPT), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
