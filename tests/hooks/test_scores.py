"""Edits of next-token scores, alone and with a second run, against whole runs without a cache."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from seconds import Second, Seconds, Told, reference, say
from tiny import Tiny, tiny
from torch import Tensor

from regaze.hooks import attach
from regaze.interventions import PAI
from regaze.interventions.lvlm.contrasts import guide

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3", "internvl")
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
ALPHA, GAMMA = 0.5, 1.8
SPEC = PAI(ALPHA, layers=(0, 1, 2), gamma=GAMMA)


def image_ids(model: Tiny) -> Tensor:
    config: Any = model.model.config
    names = ("image_token_id", "image_token_index", "video_token_id")
    ids = {getattr(config, name, None) for name in names} - {None}
    return torch.tensor(sorted(int(i) for i in ids if i is not None))


def text_only(model: Tiny, plain: Any, length: int) -> Second:
    """Runs prompts of some length without their images' columns, one sample at a time."""
    tokenizer = model.processor.tokenizer
    pad, inside = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("[IMG_BREAK]")
    gone = torch.cat([image_ids(model), torch.tensor([pad, inside])])

    def run(ids: Tensor) -> Tensor:
        here = torch.arange(ids.shape[1]) < length
        rows = [row[~(torch.isin(row, gone) & here)][None] for row in ids]
        with torch.no_grad():
            return torch.cat([plain(input_ids=row, use_cache=False).logits[:, -1] for row in rows])

    return run


def with_text(model: Tiny, inputs: Mapping[str, Any]) -> Any:
    plain = copy.deepcopy(model.model)
    second = text_only(model, plain, inputs["input_ids"].shape[1])
    return reference(model, second, lambda a, b: guide(a, b, GAMMA))


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_the_contrast_is_that_of_whole_runs(family: str, way: str) -> None:
    model = tiny(family)
    for row in ROWS:
        inputs = ask(model, row)
        want = say(
            model, inputs, PAI(ALPHA, layers=(0, 1, 2)), with_text(model, inputs), **WAYS[way]
        )
        assert say(model, inputs, SPEC, **WAYS[way]) == want
        assert want != say(model, inputs, PAI(ALPHA, layers=(0, 1, 2)), **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_a_padded_batch_however_it_is_generated(way: str) -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    want = say(model, inputs, PAI(ALPHA, layers=(0, 1, 2)), with_text(model, inputs), **WAYS[way])
    assert say(model, inputs, SPEC, **WAYS[way]) == want


def test_assisted_decoding_gives_greedy_s_tokens() -> None:
    model = tiny("llava")
    helper = copy.deepcopy(model.model)
    with torch.no_grad():
        for weight in helper.get_decoder().layers[-1].parameters():
            weight.mul_(1.05)
    helper.generation_config.num_assistant_tokens = 3
    inputs = ask(model, ROWS[0])
    want = say(model, inputs, SPEC, max_new_tokens=16)
    assert say(model, inputs, SPEC, max_new_tokens=16, assistant_model=helper) == want


def test_scores_are_edited_after_branches() -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    (first, *_), _ = say(model, inputs, SPEC)
    told = Told(Seconds(ban=first))
    assert all(first not in row for row in say(model, inputs, told))


def test_without_the_output_layer_there_are_no_scores() -> None:
    model = tiny("llava")
    with pytest.raises(ValueError, match="attach to the whole model"):
        attach(model.model.model, SPEC)


def test_a_contrast_of_one_is_none_and_detaching_leaves_nothing() -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    with torch.no_grad():
        plain = model.model(**inputs).logits
        with attach(model.model, PAI(0.0, gamma=1.0)) as run:
            assert torch.equal(model.model(**inputs).logits, plain)
            assert run.report().interventions[0].exempt
        with attach(model.model, SPEC):
            model.model(**inputs)
        assert not model.model._forward_hooks and not model.model._forward_pre_hooks
        assert torch.equal(model.model(**inputs).logits, plain)


def test_generation_without_a_cache_raises() -> None:
    model = tiny("llava")
    with pytest.raises(NotImplementedError, match="use_cache=False"):
        say(model, ask(model, ROWS[0]), SPEC, use_cache=False)


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_a_pass_outside_of_generate(use_cache: bool) -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    plain = copy.deepcopy(model.model)
    other = text_only(model, plain, inputs["input_ids"].shape[1])(inputs["input_ids"])
    with attach(model.model, PAI(ALPHA, layers=(0, 1, 2))):
        edited = model.model(**inputs).logits
    with attach(model.model, SPEC):
        got = model.model(**inputs, use_cache=use_cache).logits
    assert torch.equal(got[:, :-1], edited[:, :-1])
    want = guide(edited[:, -1], other, GAMMA)
    torch.testing.assert_close(got[:, -1], want, rtol=0, atol=1e-4)


@torch.no_grad()
def test_rows_without_an_image_keep_their_scores() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0], (SHORT, []))
    plain = model.model(**inputs).logits[1, -1]
    with attach(model.model, SPEC):
        got = model.model(**inputs).logits[:, -1]
    torch.testing.assert_close(got[1], plain, rtol=0, atol=1e-5)
    assert not got[0].isfinite().all()


def test_a_prompt_in_parts_raises() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    with (
        attach(model.model, SPEC) as run,
        run.partial_prompt(),
        pytest.raises(NotImplementedError, match="whole prompt in one block"),
    ):
        model.model(**inputs)


@torch.no_grad()
def test_a_run_of_a_scores_processor_is_a_prompt_of_its_own() -> None:
    model, scale = tiny("llava"), 1.7
    inputs = ask(model, (SHORT, [0]))
    other = ask(model, (LONG, [1]))["input_ids"]
    with attach(model.model, SPEC):
        ids = model.model.generate(
            **inputs, max_new_tokens=3, do_sample=False, guidance_scale=scale,
            negative_prompt_ids=other,
        )  # fmt: skip
        outs = [model.model(**inputs), model.model(input_ids=other)]
        for token in ids[0, -3:]:
            towards, away = (out.logits[:, -1].log_softmax(-1) for out in outs)
            assert int((away + scale * (towards - away)).argmax()) == token
            outs = [
                model.model(input_ids=token.view(1, 1), past_key_values=out.past_key_values)
                for out in outs
            ]


@pytest.mark.parametrize("rows", [[-1], [-2, -1], [3, -1], [3]])
def test_scores_of_chosen_rows_are_edited_or_refused(rows: list[int]) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    length = inputs["input_ids"].shape[1]
    with attach(model.model, SPEC), torch.no_grad():
        whole = model.model(**inputs).logits
        picked = torch.tensor([row % length for row in rows])
        if rows in ([-1], [-2, -1]):
            got = model.model(**inputs, logits_to_keep=picked).logits
            torch.testing.assert_close(got, whole[:, picked], rtol=0, atol=1e-4)
            return
        with pytest.raises(NotImplementedError, match="logits_to_keep picks rows"):
            model.model(**inputs, logits_to_keep=picked)
