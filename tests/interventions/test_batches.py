"""A batch gives row by row what single samples give, and no sample sees another."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, TOKENS, Row, answer, ask, logits
from matrix import EDITS, MAIN, pairs
from methods import Method
from tiny import FAMILIES, tiny

from regaze.hooks import attach

ROWS: list[Row] = [(SHORT, [0]), (LONG, [1])]
# InstructBLIP pads between image and text, where a plain forward counts padding as positions.
FORWARD = tuple(family for family in FAMILIES if family != "instructblip")
PAIRED = tuple(f for f in FAMILIES if f not in ("instructblip", "mllama", "llava_onevision"))


@pairs(families=FORWARD)
def test_a_left_padded_batch_equals_single_samples(family: str, method: Method) -> None:
    model = tiny(family)
    batch = logits(model, ask(model, *ROWS), method.acts)
    for together, row in zip(batch, ROWS, strict=True):
        alone = logits(model, ask(model, row), method.acts)[0]
        torch.testing.assert_close(together[-len(alone) :], alone, rtol=0, atol=1e-4)


@pairs()
def test_a_left_padded_batch_generates_what_single_samples_do(family: str, method: Method) -> None:
    model = tiny(family)
    batch = answer(model, ask(model, *ROWS), method.acts)
    assert batch == [answer(model, ask(model, row), method.acts)[0] for row in ROWS]


@pairs(families=PAIRED)
def test_samples_with_one_and_two_images_share_a_batch(family: str, method: Method) -> None:
    model = tiny(family)
    rows: list[Row] = [(LONG, [1]), (SHORT, [0, 2])]
    batch = answer(model, ask(model, *rows), method.acts)
    assert batch == [answer(model, ask(model, row), method.acts)[0] for row in rows]


@pytest.mark.parametrize("name", MAIN)
def test_a_right_padded_batch_equals_single_samples(name: str) -> None:
    model = tiny("llava", fresh=True)
    model.processor.tokenizer.padding_side = "right"
    batch = logits(model, ask(model, *ROWS), EDITS[name].acts)
    for together, row in zip(batch, ROWS, strict=True):
        alone = logits(model, ask(model, row), EDITS[name].acts)[0]
        torch.testing.assert_close(together[: len(alone)], alone, rtol=0, atol=1e-4)


@pairs("adaptvis", "gift-late", families=("gemma3",))
@torch.no_grad()
def test_a_last_row_that_padding_pushed_out_of_a_window_runs_again(
    family: str, method: Method
) -> None:
    """(What ILVAD looks at ahead the model itself reads over a window of padding.)"""
    model = tiny(family, fresh=True)
    model.processor.tokenizer.padding_side = "right"
    batch = ask(model, *ROWS)
    count, window = int(batch["attention_mask"][0].sum()), model.tower.config.sliding_window
    assert batch["input_ids"].shape[1] - count >= window
    with attach(model.model, method.acts, processor=model.processor):
        together = model.model(**batch, use_cache=True).logits[0, count - 1]
        alone = model.model(**ask(model, ROWS[0]), use_cache=True).logits[0, -1]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pairs(families=("llava", "qwen2_vl", "gemma3", "instructblip"))
def test_two_samples_in_a_row_equal_two_fresh_attachments(family: str, method: Method) -> None:
    model = tiny(family)
    prompts = [ask(model, (LONG, [1])), ask(model, (SHORT, [0])), ask(model, (LONG, [2]))]
    with attach(model.model, method.acts, processor=model.processor):
        in_a_row = [generate(model, inputs) for inputs in prompts]
    assert in_a_row == [answer(model, inputs, method.acts)[0] for inputs in prompts]


def generate(model: Any, inputs: dict[str, Any]) -> list[int]:
    ids: list[int] = model.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[
        0
    ].tolist()
    return ids[-TOKENS:]


@pytest.mark.parametrize("name", MAIN)
def test_the_same_prompt_asked_again_gives_the_same(name: str) -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS[name].acts), torch.no_grad():
        first = model.model(**inputs).logits
        generate(model, ask(model, (LONG, [1])))
        again = model.model(**inputs).logits
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", MAIN)
def test_the_order_of_rows_in_a_batch_does_not_matter(name: str) -> None:
    model = tiny("llava")
    rows: list[Row] = [*ROWS, (SHORT, [2])]
    alone = [answer(model, ask(model, row), EDITS[name].acts)[0] for row in rows]
    for order in itertools.permutations(range(3)):
        batch = answer(model, ask(model, *(rows[i] for i in order)), EDITS[name].acts)
        assert batch == [alone[i] for i in order]
