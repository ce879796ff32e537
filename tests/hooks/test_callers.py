"""Passes as read off the tower's caller: parts of a prompt, drafts, ids, masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, ask, logits
from matrix import ALL, EDITS, MAIN, pairs
from methods import Method
from tiny import Tiny, tiny
from torch import Tensor, nn
from transformers import LogitsProcessorList

from regaze.hooks import attach, capture
from regaze.interventions import Intervention

FEW = ("llava", "qwen2_vl")
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]


class Wrapper(nn.Module):
    """A module around a model, as adapters and trainers put it; it generates with the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def get_decoder(self) -> Any:
        return self.inner.get_decoder()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.generate(*args, **kwargs)


TARGETS: dict[str, Callable[[Any], Any]] = {
    "the model": lambda model: model,
    "the inner model": lambda model: model.model,
    "a wrapper": Wrapper,
}


def refuses(method: Method, target: str) -> bool:
    """True if a method needs scores that a part of the model doesn't make; it then says so."""
    if method.decides == "prediction" and target == "the inner model":
        with pytest.raises(ValueError, match="no output layer"):
            attach(TARGETS[target](tiny("llava").model), method.acts)
        return True
    return False


def say(
    model: Tiny, spec: Intervention, target: Any = None, *rows: Row, **options: Any
) -> list[list[int]]:
    """Generate with something attached to a target, a part of the model or a wrapper."""
    inputs = ask(model, *(rows or [(SHORT, [0])]))
    target = model.model if target is None else target
    runs = target if hasattr(target, "generate") else model.model
    options = {"do_sample": False, "max_new_tokens": 10, **options}
    with attach(target, spec, processor=model.processor) as run:
        ids = runs.generate(**inputs, **options)
        assert run.report().fired
    found: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [1, 4, 7, 1000])
@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
def test_a_prompt_that_generate_reads_in_parts_is_one_prompt(
    name: str, size: int, target: str
) -> None:
    model = tiny("llava", fresh=True)
    spec = EDITS[name].acts
    want = say(model, spec, None, *ROWS)
    got = say(model, spec, TARGETS[target](model.model), *ROWS, prefill_chunk_size=size)
    assert got == want


@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
def test_prompts_in_parts_are_counted_as_one(name: str) -> None:
    model = tiny("qwen2_vl")
    with attach(model.model, EDITS[name].acts) as run:
        model.model.generate(**ask(model, *ROWS), max_new_tokens=2, prefill_chunk_size=5)
    assert run.report().interventions[0].prompts == 2


@pytest.mark.parametrize("size", [1, 4, 12])
def test_comparing_prompts_in_parts_is_refused(size: int) -> None:
    with pytest.raises(NotImplementedError, match="prefill_chunk_size"):
        say(tiny("llava"), EDITS["vhr"].acts, prefill_chunk_size=size)


def test_parts_that_are_read_in_an_unknown_way_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llava", fresh=True)

    def _prefill(
        self: Any, input_ids: Any, generation_config: Any, model_kwargs: Any, **_: Any
    ) -> Any:
        return self(input_ids=input_ids, **model_kwargs)

    monkeypatch.setattr(type(model.model), "_prefill", _prefill)
    with pytest.raises(RuntimeError, match="prefill_chunk_size"):
        say(model, EDITS["pai"].acts, prefill_chunk_size=4)


def helper(model: Tiny) -> Any:
    """A model that drafts: a little off."""
    drafts = copy.deepcopy(model.model)
    with torch.no_grad():
        for weight in drafts.get_decoder().layers[-1].parameters():
            weight.mul_(1.05)
    drafts.generation_config.num_assistant_tokens = 3
    return drafts


DRAFTING = tuple(name for name in MAIN if EDITS[name].drafts)


@pytest.mark.parametrize("options", ["assistant_model", "prompt_lookup_num_tokens"])
def test_what_drafts_are_refused_for_says_so(options: str) -> None:
    model = tiny("qwen2_vl", fresh=True)
    given = helper(model) if options == "assistant_model" else 3
    for name in set(MAIN) - set(DRAFTING) | {"anchor", "tidal"}:
        with pytest.raises(NotImplementedError, match="leave the assistant"):
            say(model, EDITS[name].acts, **{options: given})


@pytest.mark.parametrize("target", TARGETS)
@pairs(*DRAFTING, families=FEW)
def test_drafts_change_no_answer(family: str, method: Method, target: str) -> None:
    if refuses(method, target):
        return
    model = tiny(family, fresh=True)
    options: dict[str, Any] = {"assistant_model": helper(model)}
    want = say(model, method.acts, max_new_tokens=16)
    got = say(model, method.acts, TARGETS[target](model.model), max_new_tokens=16, **options)
    assert got == want


@pytest.mark.parametrize("target", TARGETS)
@pairs(
    *DRAFTING, families=("qwen2_vl",)
)  # LLaVA itself refuses image tokens among the proposed ones
def test_drafts_from_the_prompt_change_no_answer(family: str, method: Method, target: str) -> None:
    if refuses(method, target):
        return
    model = tiny(family, fresh=True)
    options: dict[str, Any] = {"max_new_tokens": 16}
    want = say(model, method.acts, **options)
    options["prompt_lookup_num_tokens"] = 3
    assert say(model, method.acts, TARGETS[target](model.model), **options) == want


@pytest.mark.parametrize("name", DRAFTING)
def test_the_drafting_model_may_be_attached_to(name: str) -> None:
    model = tiny("llava", fresh=True)
    drafts = helper(model)
    want = say(model, EDITS[name].acts)
    with attach(drafts, EDITS[name].acts):
        assert say(model, EDITS[name].acts, assistant_model=drafts) == want


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("name", ["pai", "vaf", "var"])
@torch.no_grad()
def test_asking_for_some_logits_of_a_second_block_makes_it_no_draft(name: str, count: int) -> None:
    """A further question whose last logits are asked for is a question like any other."""
    model = tiny("llava")
    question = torch.randint(10, 60, (1, 12), generator=torch.Generator().manual_seed(0))

    def talk(**options: Any) -> Tensor:
        with attach(model.model, EDITS[name].acts):
            cache = model.model(**ask(model, (SHORT, [0])), use_cache=True).past_key_values
            found: Tensor = model.model(
                input_ids=question, past_key_values=cache, **options
            ).logits[:, -1]
        return found

    torch.testing.assert_close(talk(logits_to_keep=count), talk(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_ids_and_padding_are_found_around_the_attached_module(name: str) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, *ROWS)
    want = logits(model, inputs, EDITS[name].acts)
    wrapped = Wrapper(model.model)
    for target in (model.model.model, wrapped):
        if EDITS[name].decides == "prediction" and target is not wrapped:
            continue
        with attach(target, EDITS[name].acts):
            assert torch.equal(model.model(**inputs).logits, want)
            assert torch.equal(wrapped(**inputs).logits, want)
            assert torch.equal(wrapped(inputs["input_ids"], **rest(inputs)).logits, want)


def rest(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if k != "input_ids"}


@pytest.mark.parametrize("options", [
    {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", MAIN)
def test_repeated_rows_are_followed(name: str, options: dict[str, Any]) -> None:
    """Each answer is what forward passes over it alone would say."""
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    torch.manual_seed(0)
    with attach(model.model, EDITS[name].acts), torch.no_grad():
        made = model.model.generate(
            **inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True, **options
        )
        length = inputs["input_ids"].shape[1]
        for number, answer in enumerate(made.sequences[:, length:]):
            cache = model.model(**inputs, use_cache=True)
            steps = [cache.logits[0, -1]]
            for token in answer[:-1]:
                out = model.model(
                    input_ids=token[None, None], past_key_values=cache.past_key_values
                )
                steps.append(out.logits[0, -1])
            if options.get("do_sample"):
                got = torch.stack([step[number] for step in made.logits])
                torch.testing.assert_close(got, torch.stack(steps), rtol=0, atol=1e-4)
            else:
                beams = made.beam_indices[number].tolist()
                got = torch.stack([step[b] for step, b in zip(made.logits, beams, strict=False)])
                torch.testing.assert_close(got, torch.stack(steps), rtol=0, atol=1e-4)


class Asking:
    """A processor of scores that runs the model on a prompt of its own, as contrasts do."""

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.heard: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.heard.append(self.model(**self.inputs).logits[:, -1])
        return scores


@pytest.mark.parametrize("way", ["use_cache", "assistant_model"])
@pytest.mark.parametrize("name", ["pai", "vhr", "vcd", "gift-late"])
def test_what_generate_was_given_may_run_the_model_on_prompts_of_its_own(
    name: str, way: str
) -> None:
    """The loop's tokens behind its prompt, and its drafts, are none of theirs."""
    if way == "use_cache" and name in ("vcd", "gift-late"):
        pytest.skip("they need a cache to generate")
    model, spec = tiny("llava"), ALL[name].acts
    inputs, other = ask(model, (SHORT, [0])), ask(model, (LONG, [1]))
    want = logits(model, other, spec)[:, -1]
    options = {"use_cache": False} if way == "use_cache" else {way: tiny("llava", seed=1).model}
    asking = Asking(model.model, other)
    with attach(model.model, spec):
        told = {"max_new_tokens": 4, "do_sample": False, **options}
        alone = model.model.generate(**inputs, **told)
        beside = model.model.generate(
            **inputs, logits_processor=LogitsProcessorList([asking]), **told
        )
    assert torch.equal(beside, alone)
    assert len(asking.heard) > 2
    for heard in asking.heard:
        torch.testing.assert_close(heard, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "where"), [("pai", "layers.1"), ("vcd", "norm"), ("gift-late", "")]
)
@torch.no_grad()
def test_a_hook_that_runs_the_model_inside_of_its_own_call_is_refused(
    name: str, where: str
) -> None:
    """It left scores and rows as they were."""
    model = tiny("llava")
    inputs, other, busy = ask(model, (SHORT, [0])), ask(model, (LONG, [1])), False

    def run_another(*_: Any) -> None:
        nonlocal busy
        if not busy:
            busy = True
            model.model(**other)

    handle = model.tower.get_submodule(where).register_forward_hook(run_another)
    try:
        with attach(model.model, ALL[name].acts):
            with pytest.raises(NotImplementedError, match="is called inside of a call of its own"):
                model.model(**inputs)
            after = model.model(**inputs).logits
    finally:
        handle.remove()
    assert torch.equal(after, logits(model, inputs, ALL[name].acts))


@torch.no_grad()
def test_a_capture_sees_the_inputs_of_an_outer_call() -> None:
    model = tiny("qwen2_vl", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    with capture(model.model) as seen:
        model.model(**inputs)
    assert seen.heat().shape == model.grid(inputs)
