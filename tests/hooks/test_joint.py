"""Second runs that share a step's batch, against the same runs beside the main one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask
from seconds import Seconds, Told, twice
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache

from regaze.hooks import Branch, attach, joint, scores
from regaze.hooks.caches import find_cache
from regaze.hooks.calls import Calls
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass
from regaze.hooks.second_runs import without_images
from regaze.interventions import PAI, VAF

LAYERS = (0, 1, 2)


class Passes:
    """Counts passes of a text tower, and those that several runs share.

    Not by a hook: where others have one, each run has passes of its own.
    """

    def __init__(self, model: Tiny) -> None:
        self.all = self.shared = 0
        self._calls = Calls()
        self._calls.around(model.tower, self.count, inner=True)

    def count(self, tower: Any, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.all += 1
        self.shared += isinstance(find_cache(kwargs), joint.JointCache)
        return call(*args, **kwargs)

    def remove(self) -> None:
        self._calls.release()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Called: second runs go beside from now on."""
    yield lambda: monkeypatch.setattr(scores, "joinable", lambda *_: False)


def noised(given: Mapping[str, Any], pass_: Pass) -> dict[str, Any]:
    pixels = given["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    return {**given, "pixel_values": pixels + noise}


def specs(model: Tiny) -> list[Any]:
    """Edits of attention before and behind two second runs; one of them has its own."""
    host = find_host(model.model, model.processor)
    own = PAI(-0.5, layers=(1, 2)).resolve(host).bind(host)
    branches = Branch(noised, twice, (own,)), Branch(without_images, twice)
    return [VAF(layers=(0, 1)), Told(Seconds(*branches)), PAI(0.5, layers=(2,))]


def answers(model: Tiny, inputs: Any, **options: Any) -> tuple[Tensor, Tensor, Passes]:
    """Tokens, their scores, and what passes there were."""
    if options.pop("assistant", None):
        helper = options["assistant_model"] = copy.deepcopy(model.model)
        with torch.no_grad():
            for weight in helper.get_decoder().layers[-1].parameters():
                weight.mul_(1.05)
        helper.generation_config.num_assistant_tokens = 3
    told: dict[str, Any] = {
        "max_new_tokens": 6, "do_sample": False, "output_logits": True, **options,
    }  # fmt: skip
    torch.manual_seed(0)
    with attach(model.model, *specs(model), processor=model.processor) as run:
        passes = Passes(model)
        found = model.model.generate(**inputs, return_dict_in_generate=True, **told)
        passes.remove()
    assert run.report().interventions[1].fired
    return found.sequences, torch.stack(found.logits), passes


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "paligemma", "mistral3"])
def test_a_step_of_all_runs_is_one_pass(family: str, beside: Any) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    tokens, got, passes = answers(model, inputs)
    assert (passes.all, passes.shared) == (3 + 5, 5)
    beside()
    alone, want, passes = answers(model, inputs)
    assert (passes.all, passes.shared) == (3 * 6, 0)
    assert torch.equal(tokens, alone)
    close(got, want)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"assistant": True, "max_new_tokens": 12},
    ],
    ids=["beams", "sampling", "drafts"],
)
def test_rows_that_move_and_drafts_that_are_dropped(options: dict[str, Any], beside: Any) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    tokens, got, passes = answers(model, inputs, **options)
    # Prompts, and the second runs' share of the drafts behind them.
    assert passes.all - passes.shared == (5 if "assistant" in options else 3) < passes.shared
    beside()
    alone, want, _ = answers(model, inputs, **options)
    assert torch.equal(tokens, alone)
    close(got, want)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma3", {}),
        ("llava", {"cache_implementation": "static"}),
        ("llava", {"output_attentions": True}),
        ("llava", {"output_hidden_states": True}),
    ],
    ids=["sliding", "static", "maps", "hidden"],
)
def test_what_is_not_understood_runs_beside(family: str, options: dict[str, Any]) -> None:
    model = tiny(family, attn_implementation="eager")
    _, _, passes = answers(model, ask(model, (SHORT, [0])), **options)
    assert (passes.all, passes.shared) == (3 * 6, 0)


def test_eager_maps_of_shared_passes(beside: Any) -> None:
    model = tiny("llava", attn_implementation="eager")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    _, got, passes = answers(model, inputs)
    assert passes.shared
    beside()
    close(got, answers(model, inputs)[1])


@torch.no_grad()
def test_a_cache_that_is_moved_copied_or_cut_goes_on_where_it_is() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    start, shared = inputs["input_ids"].shape[1], list[int]()

    def step(cache: Any, column: int, *tokens: int) -> Tensor:
        new = torch.tensor([[token] for token in tokens])
        mask = torch.cat([rows, torch.ones(len(rows), column - start + 1, dtype=torch.long)], 1)
        positions = mask.sum(1, keepdim=True) - 1
        found = model.model(
            input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        assert found.past_key_values is cache
        shared.append(passes.shared)
        return found.logits[:, -1]  # type: ignore[no-any-return]

    with attach(model.model, *specs(model)):
        passes, rows = Passes(model), inputs["attention_mask"]
        cache = model.model(**inputs, past_key_values=DynamicCache()).past_key_values
        first = step(cache, start, 30, 31)
        again = copy.deepcopy(cache)
        second = step(cache, start + 1, 40, 41)
        cache.crop(-1)
        close(step(cache, start + 1, 40, 41), second)
        rows = rows.flip(0)
        again.reorder_cache(torch.tensor([1, 0]))
        close(step(again, start + 1, 41, 40), second.flip(0))
        again.crop(-2)
        close(step(again, start, 31, 30), first.flip(0))
        passes.remove()
    assert shared == [1, 2, 3, 4, 5]
    assert cache.layers[0].keys.shape[0] == 2 and type(cache) is DynamicCache


def test_gradients_flow_through_shared_steps(beside: Any) -> None:
    model = tiny("llava", fresh=True)
    inputs = ask(model, (SHORT, [0]))
    start, weight = inputs["input_ids"].shape[1], model.tower.layers[0].mlp.down_proj.weight

    def gradient() -> Tensor:
        weight.grad = None
        with attach(model.model, *specs(model)):
            passes = Passes(model)
            found = model.model(**inputs, use_cache=True)
            total = found.logits[:, -1].sum()
            for column, token in enumerate((30, 31), start):
                step = {
                    "input_ids": torch.tensor([[token]]),
                    "position_ids": torch.tensor([[column]]),
                }
                found = model.model(**step, past_key_values=found.past_key_values)
                total = total + found.logits[:, -1].sum()
            passes.remove()
            shared.append(passes.shared)
            total.backward()
        found_gradient: Tensor = weight.grad
        return found_gradient

    shared: list[int] = []
    got = gradient()
    beside()
    want = gradient()
    assert shared == [2, 0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
