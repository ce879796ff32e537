"""Second runs of the model and edits of next-token scores, against whole runs without a cache."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from seconds import Seconds, Told, twice
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from regaze.hooks import Branch, Edit, attach
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass
from regaze.interventions import PAI
from regaze.interventions.lvlm.contrasts import guide

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral3", "internvl")
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
ALPHA, GAMMA = 0.5, 1.8
SPEC = PAI(ALPHA, layers=(0, 1, 2), gamma=GAMMA)

Second = Callable[[Tensor], Tensor]
"""Scores "B V" of a second run, from all token ids so far."""


class Contrast(LogitsProcessor):
    """Combines with a second run that is made anew for every token."""

    def __init__(self, second: Second, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.second, self.combine = second, combine

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.combine(scores, self.second(input_ids)).log_softmax(-1)


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


def say(model: Tiny, inputs: Mapping[str, Any], spec: Any, second: Any = None, **more: Any) -> Any:
    settings = {"max_new_tokens": 7, "do_sample": False, "logits_processor": second, **more}
    torch.manual_seed(0)
    with attach(model.model, spec, processor=model.processor) as run:
        ids = model.model.generate(**inputs, **settings)
    assert run.report().fired
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def reference(model: Tiny, second: Second, combine: Any) -> Any:
    return LogitsProcessorList([Contrast(second, combine)])


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


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_another_picture_in_the_second_run(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, *ROWS)
    plain = copy.deepcopy(model.model)
    noise = torch.randn(inputs["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
    noisy = {**inputs, "pixel_values": inputs["pixel_values"] + 2 * noise}

    def second(ids: Tensor) -> Tensor:
        new = torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1], dtype=torch.long)
        whole = {**noisy, "input_ids": ids}
        whole["attention_mask"] = torch.cat([inputs["attention_mask"], new], 1)
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], 0 * new], 1)
        return plain(**whole, use_cache=False).logits[:, -1]  # type: ignore[no-any-return]

    branch = Branch(lambda given, _: {**given, "pixel_values": noisy["pixel_values"]}, twice)
    got = say(model, inputs, Told(Seconds(branch)))
    with torch.no_grad():
        want = model.model.generate(
            **inputs,
            max_new_tokens=7,
            do_sample=False,
            logits_processor=reference(model, second, twice),
        )
    assert got == want[:, inputs["input_ids"].shape[1] :].tolist()


def _longer(model: Tiny, ids: Tensor) -> Tensor:
    words = model.processor.tokenizer("you are confused.", add_special_tokens=False).input_ids
    return torch.cat([ids[:, :1], torch.tensor([words]), ids[:, 1:]], 1)


def _moved(model: Tiny, ids: Tensor) -> Tensor:
    """As long, with the image one column further to the left."""
    return torch.cat([ids[:, :1], ids[:, 2:], ids[:, 1:2]], 1)


class Noting(Edit):
    """Notes what it is told that the model was called with."""

    rows = "last"

    def __init__(self, seen: list[tuple[bool, Mapping[str, Any]]]) -> None:
        super().__init__((0,))
        self.seen = (seen,)  # Not copied with the edit.

    def begin(self, pass_: Pass) -> None:
        if pass_.prompt_start:
            self.seen[0].append((bool(pass_.tokens.has_image.any()), pass_.inputs))


class Wrapper(torch.nn.Module):
    """Calls what it holds by its forward alone, as some do."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, input_ids: Tensor, pixel_values: Tensor, note: str = "") -> Any:
        return self.held.forward(input_ids=input_ids, pixel_values=pixel_values)


def test_a_second_run_is_told_its_own_arguments() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    other = inputs["input_ids"].flip(1)
    pixels = inputs["pixel_values"] + 1
    seen: list[tuple[bool, Mapping[str, Any]]] = []

    def inputs_of(given: Mapping[str, Any], pass_: Pass) -> dict[str, Any]:
        return {"input_ids": other, "pixel_values": pixels}

    branch = Branch(inputs_of, twice, edits=(Noting(seen),))
    with attach(model.model, Told(Seconds(branch))), torch.no_grad():
        model.model(**inputs)
    ((has_image, told),) = seen
    assert has_image
    assert told["input_ids"] is other
    assert told["pixel_values"] is pixels


def test_a_wrapper_that_calls_forward_past_the_scores_is_refused() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    told = {name: inputs[name] for name in ("input_ids", "pixel_values")}
    branch = Branch(lambda given, pass_: told, twice)
    with attach(model.model, Told(Seconds(branch))), torch.no_grad():
        want = model.model(**told).logits
        with pytest.raises(RuntimeError, match="forward was called directly"):
            Wrapper(model.model)(**told)
        model.model.model(**told)  # It makes no scores.
        assert torch.equal(model.model(**told).logits, want)
    with attach(model.model, PAI(ALPHA, layers=(0, 1))), torch.no_grad():
        want = model.model(**told).logits
        assert torch.equal(Wrapper(model.model)(**told).logits, want)


@pytest.mark.parametrize("change", [_longer, _moved])
def test_another_instruction_and_edits_of_its_own(change: Any) -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    plain = copy.deepcopy(model.model)
    other = change(model, inputs["input_ids"])
    own = PAI(-0.5, layers=(1, 2))

    def inputs_of(given: Mapping[str, Any], pass_: Pass) -> dict[str, Any]:
        return {**given, "input_ids": other, "attention_mask": torch.ones_like(other)}

    def second(ids: Tensor) -> Tensor:
        whole = torch.cat([other, ids[:, inputs["input_ids"].shape[1] :]], 1)
        with attach(plain, own), torch.no_grad():
            cache = DynamicCache(config=plain.config.get_text_config())
            given = {"input_ids": other, "pixel_values": inputs["pixel_values"]}
            out = plain(**given, past_key_values=cache)
            for column in range(other.shape[1], whole.shape[1]):
                out = plain(input_ids=whole[:, column : column + 1], past_key_values=cache)
        return out.logits[:, -1]  # type: ignore[no-any-return]

    host = find_host(model.model, model.processor)
    branch = Branch(inputs_of, twice, edits=(own.resolve(host).bind(host),))
    got = say(model, inputs, Told(Seconds(branch)))
    settings = {"max_new_tokens": 7, "do_sample": False}
    want = model.model.generate(
        **inputs, **settings, logits_processor=reference(model, second, twice)
    )
    assert got == want[:, inputs["input_ids"].shape[1] :].tolist()


def test_scores_are_edited_after_branches() -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    (first, *_), _ = say(model, inputs, SPEC)
    told = Told(Seconds(ban=first))
    assert all(first not in row for row in say(model, inputs, told))


@torch.no_grad()
def test_a_copy_of_a_cache_has_a_second_run_of_its_own() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])

    def steps(cache: Any, *tokens: int) -> Tensor:
        new = [torch.tensor([[token]]) for token in tokens]
        return torch.cat([model.model(input_ids=t, past_key_values=cache).logits for t in new])

    with attach(model.model, SPEC):
        cache = model.model(**inputs, use_cache=True).past_key_values
        kept = copy.deepcopy(cache)
        one, other = steps(cache, 30, 31), steps(kept, 40, 41)
        cache = model.model(**inputs, use_cache=True).past_key_values
        assert torch.equal(steps(cache, 40, 41), other)
        cache.crop(-2)
        assert torch.equal(steps(cache, 30, 31), one)
        # In turns: neither may see the other's tokens.
        cache = model.model(**inputs, use_cache=True).past_key_values
        kept = copy.deepcopy(cache)
        turns = [
            steps(one_of, t) for t, one_of in ((30, cache), (40, kept), (31, cache), (41, kept))
        ]
        assert torch.equal(torch.cat(turns[::2]), one) and torch.equal(
            torch.cat(turns[1::2]), other
        )


def test_threads_have_second_runs_of_their_own() -> None:
    model = tiny("llava")
    asked = [ask(model, row) for row in ROWS]
    with attach(model.model, SPEC):

        def go(inputs: dict[str, Any]) -> list[int]:
            return model.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist()  # type: ignore[no-any-return]

        want, got = [go(inputs) for inputs in asked], [[], []]  # type: ignore[var-annotated]
        threads = [
            threading.Thread(target=lambda i=i: got.__setitem__(i, go(asked[i]))) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == want


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


@torch.no_grad()
def test_what_a_model_remembers_of_positions_is_the_main_run_s() -> None:
    model = tiny("qwen2_5_vl")
    inputs, larger = ask(model, (SHORT, [0])), ask(model, (SHORT, [2]))
    assert inputs["image_grid_thw"].tolist() != larger["image_grid_thw"].tolist()
    owner: Any = model.model.model
    model.model(**inputs)
    deltas = owner.rope_deltas
    branch = Branch(lambda given, _: dict(larger), twice)
    with attach(model.model, Told(Seconds(branch))):
        model.model(**inputs)
    assert torch.equal(owner.rope_deltas, deltas)
    model.model(**larger)
    assert not torch.equal(owner.rope_deltas, deltas)


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


def test_a_model_that_shares_the_text_tower_is_refused() -> None:
    model, other = tiny("llava", fresh=True), tiny("llava", fresh=True)
    other.model.model.language_model = model.model.model.language_model
    inputs = ask(model, (SHORT, [0]))
    with (
        attach(model.model, SPEC),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="with a text tower that it shares with the model"),
    ):
        other.model(**inputs)


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
