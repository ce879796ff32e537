"""Prompts are known by their caches: in turns, in copies, rolled back, in reused ones."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 (nothing is read that wasn't written here)
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask, logits
from matrix import EDITS, MAIN
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache, StaticCache

from regaze.hooks import attach, capture

TEXTS = ("<s>USER: <image>\n", "<s>USER: please look at this: <image>\n")
CACHED = ("pai", "vaf", "var")  # VHR compares whole prompts


def empty(model: Tiny) -> DynamicCache:
    return DynamicCache(config=model.model.config.get_text_config())


def step(model: Tiny, cache: Any, token: int = 30) -> Tensor:
    rows = int(cache.layers[0].keys.shape[0])
    out: Tensor = model.model(input_ids=torch.full((rows, 1), token), past_key_values=cache).logits[
        :, -1
    ]
    return out


def encode(model: Tiny, *rows: Row, cache: Any = None) -> Any:
    return model.model(**ask(model, *rows), past_key_values=cache, use_cache=True).past_key_values


def decoded(model: Tiny, name: str, row: Row, count: int = 3) -> list[Tensor]:
    """Logits of a few steps after a prompt, with nothing else under way."""
    with attach(model.model, EDITS[name].acts):
        cache = encode(model, row)
        return [step(model, cache, 30 + number) for number in range(count)]


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("made", [True, False], ids=["made by the model", "given"])
@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_prompts_are_decoded_in_turns(name: str, made: bool) -> None:
    model = tiny("llava")
    rows: list[Row] = [(SHORT, [0]), (LONG, [1]), (SHORT, [])]
    want = [decoded(model, name, row) for row in rows]
    with attach(model.model, EDITS[name].acts):
        caches = [encode(model, row, cache=None if made else empty(model)) for row in rows]
        for number in range(3):
            for cache, steps in zip(caches, want, strict=True):
                assert_near(step(model, cache, 30 + number), steps[number])


@pytest.mark.parametrize("how", ["deepcopy", "copies of layers", "crop"])
@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_prefixes_of_several_pictures_answer_several_questions(name: str, how: str) -> None:
    model = tiny("llava")
    texts = (" is there a dog?", " x", " what is on the left of it?")
    questions = [
        model.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        for text in texts
    ]
    questions.append(questions[0][:, :1])  # one token, and still a question

    def prefix(number: int) -> dict[str, Any]:
        pictures = [model.picture(number)]
        return dict(model.processor(text=[TEXTS[number]], images=pictures, return_tensors="pt"))

    def whole(number: int, question: Tensor) -> Tensor:
        ids = torch.cat([prefix(number)["input_ids"], question], 1)
        inputs = {**prefix(number), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return logits(model, inputs, EDITS[name].acts)[:, -1]

    def fork(cache: DynamicCache) -> DynamicCache:
        if how == "deepcopy":
            return copy.deepcopy(cache)
        if how == "crop":
            return cache
        twin = copy.copy(cache)
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        return twin

    want = [[whole(number, question) for number in (0, 1)] for question in questions]
    with attach(model.model, EDITS[name].acts) as run:
        caches = [empty(model) for _ in TEXTS]
        for number, cache in enumerate(caches):
            with run.partial_prompt():
                model.model(**prefix(number), past_key_values=cache)
        for question, wanted in zip(questions, want, strict=True):
            for number, cache in enumerate(caches):
                size = int(cache.get_seq_length())
                twin = fork(cache)
                got = model.model(input_ids=question, past_key_values=twin).logits[:, -1]
                step(model, twin)
                assert_near(got, wanted[number])
                if how == "crop":
                    twin.crop(size - int(twin.get_seq_length()))


@torch.no_grad()
def test_a_shallow_copy_that_shares_its_columns_is_refused_when_they_have_moved_on() -> None:
    model = tiny("llava")
    with attach(model.model, EDITS["pai"].acts):
        cache = encode(model, (SHORT, [0]))
        twin = copy.copy(cache)
        step(model, cache)
        with pytest.raises(ValueError, match="attach first"):
            step(model, twin)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_a_reused_static_cache_holds_the_latest_prompt(name: str) -> None:
    model = tiny("llava")
    config = model.model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=64)
    rows: list[Row] = [(LONG, [1]), (SHORT, [0]), (SHORT, []), (LONG, [1])]
    want = [decoded(model, name, row) for row in rows]
    with attach(model.model, EDITS[name].acts):
        for row, steps in zip(rows, want, strict=True):
            cache.reset()
            encode(model, row, cache=cache)
            for number, wanted in enumerate(steps):
                assert_near(step(model, cache, 30 + number), wanted)


@torch.no_grad()
def test_a_cache_that_a_pass_broke_off_is_nobodys() -> None:
    model = tiny("llava", fresh=True)
    layer: Any = model.model.get_decoder().layers[1]

    def fail(*_: Any) -> None:
        raise MemoryError

    with attach(model.model, EDITS["pai"].acts):
        cache = encode(model, (SHORT, [0]))
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            step(model, cache)
        handle.remove()
        with pytest.raises(ValueError, match="attach first"):
            step(model, cache)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_an_intervention_attached_in_the_middle_of_a_prompt_raises(name: str) -> None:
    model = tiny("llava", fresh=True)
    with attach(model.model, EDITS["vaf"].acts):
        cache = encode(model, (SHORT, [0]))
        with attach(model.model, EDITS[name].acts), pytest.raises(ValueError, match="middle"):
            step(model, cache)


@torch.no_grad()
def test_a_cache_is_written_to_a_file_without_what_is_known_of_it() -> None:
    model = tiny("llava")
    with attach(model.model, EDITS["var"].acts):
        cache = encode(model, (SHORT, [0]))
        loaded = pickle.loads(pickle.dumps(cache))
        with pytest.raises(ValueError, match="attach first"):
            step(model, loaded)


@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_feeding_the_last_token_of_a_prompt_again_changes_nothing(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    want = logits(model, inputs, EDITS[name].acts)[:, -1]
    with attach(model.model, EDITS[name].acts):
        cache = encode(model, (SHORT, [0]))
        cache.crop(-1)
        again = {"input_ids": inputs["input_ids"][:, -1:], "past_key_values": cache}
        assert_near(model.model(**again).logits[:, -1], want)


@pytest.mark.parametrize("rows", [[1, 0], [0, 0]])
@torch.no_grad()
def test_rows_that_are_moved_behind_the_cache_s_back_raise(rows: list[int]) -> None:
    model = tiny("llava")
    with attach(model.model, EDITS["vaf"].acts):
        cache = encode(model, (SHORT, [0]), (SHORT, [1]))
        for layer in cache.layers:
            layer.batch_select_indices(torch.tensor(rows))
        with pytest.raises(ValueError, match="another order"):
            step(model, cache)


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("name", ["pai", "vaf"])
@torch.no_grad()
def test_columns_taken_out_of_the_middle_raise(name: str, first: int) -> None:
    """A few first columns and the latest ones, as caches of endless streams keep them."""
    model = tiny("llava")
    with attach(model.model, EDITS[name].acts):
        cache: Any = encode(model, (LONG, [0]))
        length = cache.get_seq_length()
        kept = torch.tensor([*range(first), *range(length - 8, length)])
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        with pytest.raises(ValueError, match="out of its middle"):
            step(model, cache)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_rows_that_change_places_with_their_like_are_beams(name: str) -> None:
    model = tiny("llava")
    with attach(model.model, EDITS[name].acts):
        cache = encode(model, (SHORT, [0]), (LONG, [1]))
        want = step(model, copy.deepcopy(cache))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0, 3, 2]))
        assert_near(step(model, cache), want.repeat_interleave(2, 0))


@torch.no_grad()
def test_a_capture_follows_the_latest_prompt_only() -> None:
    model = tiny("llava")
    with capture(model.model) as seen:
        first = encode(model, (LONG, [1]))
        encode(model, (SHORT, [0]))
        before = [one.weights for one in seen.captured]
        step(model, first)
        assert len(seen.captured) == len(before)
    with capture(model.model) as alone:
        encode(model, (SHORT, [0]))
    for one, other in zip(alone.captured, before, strict=True):
        assert torch.equal(one.weights, other)


@torch.no_grad()
def test_heads_stay_where_the_same_prompt_is_rolled_back_and_else_it_raises() -> None:
    model = tiny("llava")
    ids = ask(model, (SHORT, [0]))["input_ids"]
    want = logits(model, ask(model, (SHORT, [0])), EDITS["vhr"].acts)[:, -1]
    with attach(model.model, EDITS["vhr"].acts):
        cache = encode(model, (SHORT, [0]))
        cache.crop(-2)
        again = model.model(input_ids=ids[:, -2:], past_key_values=cache).logits[:, -1]
        assert_near(again, want)
        cache.crop(-2)
        with pytest.raises(NotImplementedError, match="whole prompt"):
            model.model(input_ids=torch.tensor([[40, 41]]), past_key_values=cache)
