"""Prompts that are fed in parts, said to go on or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import SHORT, ask, logits
from matrix import EDITS
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache

from regaze.hooks import attach
from regaze.interventions import Intervention


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
