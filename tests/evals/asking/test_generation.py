from __future__ import annotations

import pytest
from tiny import FAMILIES, tiny
from toy import ToyTask, toy_model

from regaze.evals.asking.generation import Answerer

MODEL, PROCESSOR = toy_model()

CANNOT = {"instructblip": "its processor takes one flat list of images and has no chat template"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=pytest.mark.skip(reason=f"{f}: {CANNOT[f]}")) if f in CANNOT else f
        for f in FAMILIES
    ],
)
def test_every_family_answers_a_batch_as_it_answers_single_questions(family: str) -> None:
    one = tiny(family)
    answerer = Answerer(one.model, one.processor, max_new_tokens=4)
    prompts = ["is there a dog?", "please describe this picture in detail, word for word."]
    images = [one.picture(0, (40, 28)), one.picture(1, (28, 40))]
    together = answerer(prompts, images)
    assert together == [
        answerer([prompt], [image])[0] for prompt, image in zip(prompts, images, strict=True)
    ]
    assert together[0].n_prompt_tokens < together[1].n_prompt_tokens
    assert all(answer.n_new_tokens > 0 for answer in together)
    if family != "mllama":
        assert all(0 < answer.n_image_tokens < answer.n_prompt_tokens for answer in together)


def test_a_left_padded_batch_answers_as_single_questions_do() -> None:
    task = ToyTask()
    answerer = Answerer(MODEL, PROCESSOR, task.max_new_tokens)
    asked = [(item.prompt, task.load_image(item)) for item in task.items[:6]]
    together = answerer(*zip(*asked, strict=True))
    assert together == [answerer([prompt], [image])[0] for prompt, image in asked]
    assert len({answer.n_prompt_tokens for answer in together}) > 1


def test_sizes_and_ends_are_counted() -> None:
    task = ToyTask()
    answerer = Answerer(MODEL, PROCESSOR, 5)
    image = task.load_image(task.items[0])
    cut = answerer(["Describe the image."], [image])[0]
    assert (cut.finish, cut.n_new_tokens, cut.n_image_tokens) == ("length", 5, 64)
    inputs = answerer.encode(["Describe the image."], [image])
    assert cut.n_prompt_tokens == inputs["input_ids"].shape[1]
    answerer.ends = frozenset(range(len(PROCESSOR.tokenizer)))
    ended = answerer(["Describe the image."], [image])[0]
    assert (ended.finish, ended.n_new_tokens) == ("eos", 1)


def test_decoding_is_greedy_whatever_the_model_would_like() -> None:
    before = MODEL.generation_config.do_sample, MODEL.generation_config.temperature
    MODEL.generation_config.update(do_sample=True, temperature=5.0)
    try:
        answerer = Answerer(MODEL, PROCESSOR, 5)
        image = ToyTask().load_image(ToyTask().items[0])
        texts = {answerer(["Is there a red star?"], [image])[0].text for _ in range(3)}
        assert len(texts) == 1
        assert "temperature" not in answerer.settings
        assert MODEL.generation_config.do_sample is True
    finally:
        MODEL.generation_config.update(do_sample=before[0], temperature=before[1])
