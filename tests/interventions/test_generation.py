"""However a prompt is continued, the edits are the same: caches, beams, sampling, assistants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, answer, answer_and_report, ask, literally, logits
from matrix import CONTRASTS, EDITS, MAIN, pairs
from methods import Method
from tiny import tiny
from transformers import set_seed

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


@pairs(*MAIN, *CONTRASTS, families=FEW)
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
