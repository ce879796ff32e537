"""Strength zero, no image and no layers change not a single bit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, answer, answer_and_report, ask, logits
from matrix import EDITS, pairs
from methods import Method
from tiny import FAMILIES, tiny
from torch import Tensor

from regaze.interventions import from_dict

TEXT_ONLY = tuple(f for f in FAMILIES if f not in ("instructblip", "paligemma", "mllama"))
MIXED = ("llava", "llava_next", "qwen2_vl", "qwen3_vl", "internvl", "gemma3", "mistral3")
ROW_METHODS = ("pai", "vaf", "var", "var-code")


Found = tuple[dict[str, Any], Tensor, list[list[int]]]


@functools.cache
def plain(family: str, *prompts: tuple[str, tuple[int, ...]]) -> Found:
    """Inputs, and the logits and the answers of the model alone: made once for all methods."""
    model = tiny(family)
    inputs = ask(model, *((text, list(seeds)) for text, seeds in prompts))
    return inputs, logits(model, inputs), answer(model, inputs)


@pairs(*EDITS)
def test_strength_zero_changes_nothing(family: str, method: Method) -> None:
    model = tiny(family)
    inputs, alone, answers = plain(family, (SHORT, (0,)), (LONG, (1,)))
    assert torch.equal(logits(model, inputs, method.idle), alone)
    generated, report = answer_and_report(model, inputs, method.idle)
    assert generated == answers
    assert report.interventions[0].exempt
    assert not report.interventions[0].fired


@pairs(families=("llava", "gemma3"))
def test_no_layers_changes_nothing(family: str, method: Method) -> None:
    model = tiny(family)
    inputs, alone, answers = plain(family, (SHORT, (0,)))
    spec = from_dict({**method.acts.to_dict(), "layers": []})
    assert torch.equal(logits(model, inputs, spec), alone)
    assert answer(model, inputs, spec) == answers


@pairs(families=TEXT_ONLY)
def test_a_prompt_without_image_is_left_alone(family: str, method: Method) -> None:
    model = tiny(family)
    inputs, alone, answers = plain(family, (SHORT, ()), (LONG, ()))
    assert torch.equal(logits(model, inputs, method.acts), alone)
    generated, report = answer_and_report(model, inputs, method.acts)
    assert generated == answers
    assert not report.fired
    assert not report.interventions[0].layers


@pairs(families=MIXED)
def test_a_sample_without_image_is_left_alone_beside_one_with(family: str, method: Method) -> None:
    model = tiny(family)
    inputs, alone, answers = plain(family, (SHORT, (0,)), (LONG, ()))
    edited = logits(model, inputs, method.acts)
    assert torch.equal(edited[1], alone[1])
    assert not torch.equal(edited[0, -1], alone[0, -1])
    with_image, without = answer(model, inputs, method.acts)
    assert without == answers[1]
    assert len(with_image) == len(without)


@pytest.mark.parametrize("name", ROW_METHODS)
def test_rows_that_a_method_does_not_edit_keep_their_bits(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    changed = logits(model, inputs, EDITS[name].acts)[0] != logits(model, inputs)[0]
    image_end = int(model.expected_image_columns(inputs)[0].nonzero().max())
    edited = changed.any(-1).nonzero().flatten().tolist()
    last = inputs["input_ids"].shape[1] - 1
    if name == "pai":
        assert edited == [last]
    else:
        assert edited
        assert min(edited) > image_end
