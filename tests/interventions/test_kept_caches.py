"""Caches that outlive a pass: second turns, shared prefixes, and prompts decoded in turns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask, literally
from matrix import ALL, EDITS, MAIN
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache

from regaze.hooks import attach
from regaze.interventions import PromptHighlighter


@pytest.mark.parametrize("name", [name for name in MAIN if not EDITS[name].decides])
@pytest.mark.parametrize("second", ["what color is the cat on the left?", "ok"])
def test_a_second_turn_continues_a_kept_cache(name: str, second: str) -> None:
    """The same as feeding the generated tokens again one by one, and as editing maps."""
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    spec = EDITS[name].acts
    question = model.processor.tokenizer(second, return_tensors="pt")["input_ids"]

    def talk() -> tuple[list[int], list[int], Tensor]:
        cache = DynamicCache(config=model.model.config.get_text_config())
        options: dict[str, Any] = {"past_key_values": cache, "do_sample": False}
        ids = model.model.generate(**inputs, max_new_tokens=4, **options)
        longer = torch.cat([ids, question], 1)
        made = model.model.generate(
            longer,
            attention_mask=torch.ones_like(longer),
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        return ids[0].tolist(), made.sequences[0].tolist(), torch.stack(made.logits)

    with attach(model.model, spec) as run:
        first, both, scores = talk()
    with literally(model, inputs, run.specs):
        first_literal, both_literal, scores_literal = talk()
    assert first == first_literal
    assert both == both_literal
    torch.testing.assert_close(scores, scores_literal, rtol=0, atol=1e-4)


def ask_of_cache(model: Tiny, question: Tensor, cache: Any) -> Tensor:
    """Logits after a question and after each of two more tokens."""
    outputs = [model.model(input_ids=question, past_key_values=cache).logits[:, -1]]
    for token in (30, 31):
        ids = torch.full((len(question), 1), token)
        outputs.append(model.model(input_ids=ids, past_key_values=cache).logits[:, -1])
    return torch.stack(outputs)


@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
@torch.no_grad()
def test_questions_may_share_an_encoded_prefix(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    image_end = 12
    config = model.model.config.get_text_config()
    prefix = {"input_ids": inputs["input_ids"][:, :image_end], **pixels(inputs)}
    questions = [
        inputs["input_ids"][:, image_end:],
        model.processor.tokenizer("what is on the left?", return_tensors="pt")["input_ids"],
        torch.tensor([[60]]),
    ]
    with attach(model.model, EDITS[name].acts) as run:
        shared = DynamicCache(config=config)
        with run.partial_prompt():
            model.model(**prefix, past_key_values=shared)
        got = [ask_of_cache(model, question, copy.deepcopy(shared)) for question in questions]
        twice = copy.deepcopy(shared)
        twice.batch_repeat_interleave(2)
        both = ask_of_cache(model, questions[0].repeat(2, 1), twice)
    for question, answered in zip(questions[:2], got, strict=False):
        whole = {"input_ids": torch.cat([prefix["input_ids"], question], 1), **pixels(inputs)}
        with attach(model.model, EDITS[name].acts):
            cache = DynamicCache(config=config)
            first = model.model(**whole, past_key_values=cache).logits[:, -1]
            rest = [
                model.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[:, -1]
                for token in (30, 31)
            ]
        torch.testing.assert_close(answered, torch.stack([first, *rest]), rtol=0, atol=1e-4)
    torch.testing.assert_close(both, got[0].repeat(1, 2, 1), rtol=0, atol=1e-4)


CUT = {
    "ilvad": "begin anew with the whole conversation",
    "anchor": "read prompts at once",
    "vhr": "needs the whole prompt",
    "avisc": "read the new prompt from its beginning",
}
"""Methods that decide by a whole prompt, by name, and what they say of another one's beginning."""


@pytest.mark.parametrize("name", ALL)
def test_a_cache_that_is_cut_behind_the_picture_answers_another_question(name: str) -> None:
    """As the whole prompt does, or it is refused."""
    model, spec = tiny("llava"), ALL[name].acts
    inputs = ask(model, (SHORT, [0]))
    image_end = int(model.expected_image_columns(inputs)[0].nonzero().max()) + 1
    question = model.processor.tokenizer("what is on the left?", return_tensors="pt")["input_ids"]
    whole = torch.cat([inputs["input_ids"][:, :image_end], question], 1)
    told: dict[str, Any] = {
        "attention_mask": torch.ones_like(whole), "max_new_tokens": 3, "do_sample": False,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    cache = DynamicCache(config=model.model.config.get_text_config())
    with attach(model.model, spec, processor=model.processor):
        want = model.model.generate(whole, **pixels(inputs), **told)
        model.model.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache)
        cache.crop(image_end - cache.get_seq_length())
        if ALL[name].name in CUT:
            with pytest.raises(NotImplementedError, match=CUT[ALL[name].name]):
                model.model.generate(whole, past_key_values=cache, **told)
            return
        got = model.model.generate(whole, past_key_values=cache, **told)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), rtol=0, atol=1e-4)


@torch.no_grad()
def test_vhr_compares_no_picture_with_another_one_s_heads() -> None:
    """Token ids say nothing of pictures: another one, at the same columns or later, is refused."""
    model = tiny("llava")
    one, other = ask(model, (SHORT, [0])), ask(model, (SHORT, [1]))
    start = int(model.expected_image_columns(one)[0].nonzero()[0])
    with attach(model.model, EDITS["vhr"].acts):
        cache = model.model(**one, use_cache=True).past_key_values
        later = {"attention_mask": torch.ones(1, 2 * cache.get_seq_length(), dtype=torch.long)}
        with pytest.raises(NotImplementedError, match="another picture came in the middle"):
            model.model(**{**other, **later}, past_key_values=copy.deepcopy(cache))
        cache.crop(start - cache.get_seq_length())
        again = {"input_ids": other["input_ids"][:, start:], **pixels(other)}
        with pytest.raises(NotImplementedError, match="needs the whole prompt"):
            model.model(**again, past_key_values=cache)


def pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("other", [(LONG, [1]), (LONG, []), (SHORT, [1])])
@pytest.mark.parametrize("cache", ["given", "made by the model"])
@torch.no_grad()
def test_prompts_decoded_in_turns_are_edited_right_or_refused(
    name: str, other: Row, cache: str
) -> None:
    model = tiny("llava")
    token = torch.tensor([[30]])

    def encode(prompt: dict[str, Any]) -> Any:
        config = model.model.config.get_text_config()
        given = DynamicCache(config=config) if cache == "given" else None
        return model.model(**prompt, past_key_values=given, use_cache=True).past_key_values

    def decode(*prompts: dict[str, Any]) -> Tensor:
        with attach(model.model, EDITS[name].acts):
            caches = [encode(prompt) for prompt in prompts]
            step: Tensor = model.model(input_ids=token, past_key_values=caches[0]).logits
        return step

    prompts = ask(model, (SHORT, [0])), ask(model, other)
    want = decode(prompts[0])
    refused, got = "", want
    try:
        got = decode(*prompts)
    except ValueError as error:
        refused = str(error)
    assert not refused or "the cache" in refused
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_cache_from_before_the_attachment_raises() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    cache = DynamicCache(config=model.model.config.get_text_config())
    with torch.no_grad():
        model.model(**inputs, past_key_values=cache)
    with attach(model.model, EDITS["pai"].acts), pytest.raises(ValueError, match="attach first"):
        model.model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_a_span_of_another_question_behind_a_cut_cache_is_refused() -> None:
    """The second run has read the beginning; what it is to see faintly is new."""
    model, spec = tiny("llava"), PromptHighlighter(spans=("dog",))
    inputs = ask(model, (SHORT, [0]))
    image_end = int(model.expected_image_columns(inputs)[0].nonzero().max()) + 1
    cache = DynamicCache(config=model.model.config.get_text_config())
    with attach(model.model, spec, processor=model.processor), torch.no_grad():
        model.model(**inputs, past_key_values=cache)
        cache.crop(image_end - cache.get_seq_length())
        question = model.processor.tokenizer("a dog?", return_tensors="pt")["input_ids"]
        with pytest.raises(NotImplementedError, match="highlight: a span came behind"):
            model.model(input_ids=question, past_key_values=cache)
