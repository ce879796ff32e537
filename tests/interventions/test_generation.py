"""However a prompt is fed and continued, the edits are the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, answer, answer_and_report, ask, literally, logits
from matrix import EDITS, MAIN, pairs
from methods import Method
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache, set_seed

from regaze.hooks import attach
from regaze.interventions import Intervention

FEW = ("llava", "qwen2_vl", "gemma3", "mistral3")
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]


@pairs(families=("llava", "qwen2_5_vl", "gemma3", "internvl", "paligemma"))
def test_plain_forward_passes_predict_what_generate_does(family: str, method: Method) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    first = logits(model, inputs, method.acts)[0, -1].argmax()
    assert answer(model, inputs, method.acts, tokens=1) == [[int(first)]]


@pairs(families=FEW)
def test_a_static_cache_equals_a_dynamic_one(family: str, method: Method) -> None:
    model = tiny(family)
    inputs = ask(model, *ROWS)
    dynamic = answer(model, inputs, method.acts)
    assert answer(model, inputs, method.acts, cache_implementation="static") == dynamic


@pairs(families=FEW)
def test_beams_of_a_batch_equal_those_of_single_samples(family: str, method: Method) -> None:
    model = tiny(family)
    options: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "tokens": 4}
    together = answer(model, ask(model, *ROWS), method.acts, **options)
    alone = [answer(model, ask(model, row), method.acts, **options) for row in ROWS]
    assert together == [*alone[0], *alone[1]]
    assert alone[0][0] != alone[0][1]


@pytest.mark.parametrize("name", MAIN)
def test_each_beam_scores_what_edited_maps_give_it(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    with attach(model.model, EDITS[name].acts) as run:
        made = model.model.generate(
            **inputs, max_new_tokens=4, output_scores=True, return_dict_in_generate=True, **options
        )
    for ids, score in zip(made.sequences[:, -4:], made.sequences_scores, strict=True):
        with literally(model, inputs, run.specs), torch.no_grad():
            out = model.model(**inputs, use_cache=True)
            total = 0.0
            for token in ids:
                total += float(out.logits[0, -1].log_softmax(-1)[token])
                cache = out.past_key_values
                out = model.model(input_ids=token[None, None], past_key_values=cache)
        assert total == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize("name", MAIN)
def test_sampling_draws_as_it_would_without_an_intervention(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "tokens": 8}

    def draw(*specs: Intervention) -> list[list[int]]:
        set_seed(0)
        return answer(model, inputs, *specs, **options)

    assert draw(EDITS[name].acts) == draw(EDITS[name].acts)
    assert draw(EDITS[name].idle) == draw()
    assert draw(EDITS[name].acts) != draw()


@pairs("pai", "vaf", "var", families=("llava", "qwen2_vl"))
def test_assisted_decoding_equals_greedy_decoding(family: str, method: Method) -> None:
    check_assisted(family, method)


@pytest.mark.parametrize("proposed", [1, 4])
@pairs("vhr", families=("llava", "qwen2_vl"))
def test_assisted_decoding_keeps_the_heads_of_greedy_decoding(
    family: str, method: Method, proposed: int
) -> None:
    check_assisted(family, method, proposed)


def check_assisted(family: str, method: Method, proposed: int = 3) -> None:
    model, helper = tiny(family), tiny(family, fresh=True)
    with torch.no_grad():  # an assistant that is right now and then
        for weight in helper.model.get_decoder().layers[-1].parameters():
            weight.mul_(1.05)
    helper.model.generation_config.num_assistant_tokens = proposed
    inputs = ask(model, ROWS[0])
    greedy = answer(model, inputs, method.acts, tokens=10)
    assisted = answer(model, inputs, method.acts, tokens=10, assistant_model=helper.model)
    assert assisted == greedy
    assert greedy != answer(model, inputs, tokens=10)


def in_parts(
    model: Tiny, inputs: dict[str, Any], cuts: list[int], spec: Intervention
) -> tuple[Tensor, bool]:
    """Logits of a prompt that is fed in parts, and whether the edit was seen to act."""
    ids, outputs = inputs["input_ids"], []
    cache = DynamicCache(config=model.model.config.get_text_config())
    edges = [0, *cuts, ids.shape[1]]
    with attach(model.model, spec, processor=model.processor) as run, torch.no_grad():
        for start, end in zip(edges, edges[1:], strict=False):
            part = {k: inputs[k] for k in inputs if k not in ("input_ids", "attention_mask")}
            if not model.expected_image_columns({"input_ids": ids[:, start:end]}).any():
                part = {}
            part |= {"input_ids": ids[:, start:end], "attention_mask": inputs["attention_mask"]}
            part["attention_mask"] = part["attention_mask"][:, :end]
            if end < ids.shape[1]:
                with run.partial_prompt():
                    outputs.append(model.model(**part, past_key_values=cache).logits)
            else:
                outputs.append(model.model(**part, past_key_values=cache).logits)
    return torch.cat(outputs, 1), run.report().fired


CUTS = {
    "before the image": [3],
    "within the system prompt": [1, 2, 3],
    "after the image": [12],
    "within the question": [15],
    "everywhere": [2, 3, 12, 13, 14, 17, 18],
    "before the last token": [-1],
}


@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("name", ["pai", "vaf", "var", "var-code"])
def test_a_prompt_in_parts_equals_the_prompt_in_one(name: str, where: str) -> None:
    model = tiny("llava")  # columns: 3 system, 9 image, 8 question
    inputs = ask(model, (SHORT, [0]))
    length = inputs["input_ids"].shape[1]
    whole = logits(model, inputs, EDITS[name].acts)
    parts, fired = in_parts(model, inputs, [c % length for c in CUTS[where]], EDITS[name].acts)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    assert fired


@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
def test_a_padded_batch_in_parts_equals_the_batch_in_one(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), ("is there a cat on it?", [1]))
    start = int(model.expected_image_columns(inputs)[0].nonzero().max()) + 1
    start = max(start, int(model.expected_image_columns(inputs)[1].nonzero().max()) + 1)
    whole = logits(model, inputs, EDITS[name].acts)
    parts, _ = in_parts(model, inputs, [start, start + 2], EDITS[name].acts)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(parts[real], whole[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
@torch.no_grad()
def test_parts_may_end_anywhere_in_an_image(family: str, name: str) -> None:
    """The text tower alone, with placeholders for patches, can be fed in any parts.

    Not so where tokens stand inside an image: whether one at the end of a part is text or a
    row's end depends on what comes next.
    """
    model = tiny(family)
    ids = ask(model, (SHORT, [0]))["input_ids"]
    tower: Any = model.model.get_decoder()
    image = (ids[0] == model.image_token_id).nonzero().flatten()
    config = model.model.config.get_text_config()
    with attach(model.model, EDITS[name].acts, processor=model.processor) as run:
        whole = tower(input_ids=ids).last_hidden_state
        for first, size in ((int(image[0]) + 2, 1), (int(image[3]), 5), (int(image[-1]), 40)):
            cache, parts, start = DynamicCache(config=config), [], 0
            for end in [*range(first, ids.shape[1], size), ids.shape[1]]:
                part = {"input_ids": ids[:, start:end], "past_key_values": cache}
                if end < ids.shape[1]:
                    with run.partial_prompt():
                        parts.append(tower(**part).last_hidden_state)
                else:
                    parts.append(tower(**part).last_hidden_state)
                start = end
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-4)


def test_an_exception_in_a_partial_prompt_ends_the_part() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS["pai"].acts) as run, torch.no_grad():
        with pytest.raises(KeyError), run.partial_prompt():
            raise KeyError
        got = model.model(**inputs).logits
    assert torch.equal(got, logits(model, inputs, EDITS["pai"].acts))


@pytest.mark.parametrize("where", CUTS)
def test_a_method_that_needs_the_whole_prompt_raises_on_parts(where: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    cuts = [c % inputs["input_ids"].shape[1] for c in CUTS[where]]
    with pytest.raises(NotImplementedError, match="whole prompt"):
        in_parts(model, inputs, cuts, EDITS["vhr"].acts)
    assert torch.equal(
        logits(model, inputs, EDITS["vhr"].acts), logits(model, inputs, EDITS["vhr"].acts)
    )


def test_a_prompt_in_parts_that_is_not_said_to_go_on_ends_at_each_part() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS["pai"].acts) as run, torch.no_grad():
        cache = DynamicCache(config=model.model.config.get_text_config())
        first = {**inputs, "input_ids": inputs["input_ids"][:, :14], "past_key_values": cache}
        first["attention_mask"] = inputs["attention_mask"][:, :14]
        model.model(**first)
        assert run.report().fired


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


UNCACHED = {
    "adaptvis": "leave out use_cache=False",
    "anchor": "leave the assistant, prompt_lookup_num_tokens and use_cache=False out",
    "gift-late": "leave out use_cache=False",
    "ilvad": "leave out use_cache=False",
    "tidal": "leave the assistant, prompt_lookup_num_tokens and use_cache=False out",
}
"""Edits that need a prompt's cache, and what they say without one."""


@pairs(*[name for name in MAIN if name not in UNCACHED], families=FEW)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_generating_without_a_cache_changes_no_answer(
    family: str, method: Method, options: dict[str, Any]
) -> None:
    model = tiny(family)
    inputs = ask(model, *ROWS)
    said = [
        answer_and_report(model, inputs, method.acts, use_cache=use, **options)
        for use in (True, False)
    ]
    assert said[0][0] == said[1][0]
    assert said[1][1].fired


@pytest.mark.parametrize("name", UNCACHED)
def test_what_needs_a_cache_to_generate_says_so(name: str) -> None:
    model = tiny("llava")
    with pytest.raises(NotImplementedError, match=UNCACHED[name]):
        answer(model, ask(model, *ROWS), EDITS[name].acts, use_cache=False)


def test_an_answer_without_a_cache_in_an_unknown_loop_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llava", fresh=True)

    def _sample(self: Any, input_ids: Any, model_kwargs: Any, **_: Any) -> Any:
        model_kwargs = {**model_kwargs, "use_cache": False}
        return self(input_ids=input_ids, **model_kwargs)

    def generate(self: Any, input_ids: Any, **model_kwargs: Any) -> Any:
        return _sample(self, input_ids, model_kwargs)

    monkeypatch.setattr(type(model.model), "generate", generate)
    with pytest.raises(RuntimeError, match="leave use_cache=False out"):
        answer(model, ask(model, ROWS[0]), EDITS["pai"].acts)


@pairs("vaf", "var", families=FEW)
@pytest.mark.parametrize("count", [2, 12, 10_000])
def test_asking_for_more_logits_does_not_change_them(
    family: str, method: Method, count: int
) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    some = logits(model, inputs, method.acts, logits_to_keep=count)
    every = logits(model, inputs, method.acts)
    torch.testing.assert_close(some, every[:, -some.shape[1] :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MAIN)
def test_asking_for_one_logit_does_not_change_it(name: str) -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, *ROWS)
    last = logits(model, inputs, EDITS[name].acts, logits_to_keep=1)
    every = logits(model, inputs, EDITS[name].acts)
    torch.testing.assert_close(last, every[:, -1:], rtol=0, atol=1e-5)


def test_a_cache_from_before_the_attachment_raises() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    cache = DynamicCache(config=model.model.config.get_text_config())
    with torch.no_grad():
        model.model(**inputs, past_key_values=cache)
    with attach(model.model, EDITS["pai"].acts), pytest.raises(ValueError, match="attach first"):
        model.model(input_ids=torch.tensor([[7]]), past_key_values=cache)
