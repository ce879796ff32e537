"""Second runs have inputs, edits, caches and positions of their own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask
from seconds import Seconds, Told, reference, say, twice
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache

from regaze.hooks import Branch, Edit, attach
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass
from regaze.interventions import PAI

ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
SPEC = PAI(0.5, layers=(0, 1, 2), gamma=1.8)


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
        with pytest.raises(NotImplementedError, match="without its output layer"):
            model.model.model(**told)
        assert torch.equal(model.model(**told).logits, want)
    with attach(model.model, PAI(0.5, layers=(0, 1))), torch.no_grad():
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
