"""PAINT's patches: each picture's own, wherever it stands, and what can't be ranked."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from asking import LONG, SHORT, Row, answer, ask, literally, logits
from tiny import Tiny, tiny
from torch import Tensor

from regaze.hooks import Picture, attach, capture
from regaze.interventions import PAINT, parse
from regaze.interventions.lvlm.paint import merge

LAYERS = (0, 1, 2)
SPEC = PAINT(alpha=2, beta=1, layers=LAYERS)
ROWS: list[Row] = [(LONG, [1]), (SHORT, [0, 2]), (SHORT, []), (SHORT, [3])]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl", "qwen2_5_vl"])
def test_each_picture_of_a_batch_has_patches_of_its_own(family: str) -> None:
    model = tiny(family)
    batch = answer(model, ask(model, *ROWS), SPEC)
    assert batch == [answer(model, ask(model, row), SPEC)[0] for row in ROWS]
    assert batch[2] == answer(model, ask(model, ROWS[2]))[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mistral3", "smolvlm"])
def test_two_pictures_equal_the_formula(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, ROWS[1])
    with attach(model.model, SPEC, processor=model.processor) as run, torch.no_grad():
        edited = model.model(**inputs).logits
    with literally(model, inputs, run.specs), torch.no_grad():
        literal = model.model(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-4)
    assert run.report().fired


@pytest.mark.parametrize("options", [
    {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"prefill_chunk_size": 6},
], ids=str)  # fmt: skip
def test_beams_samples_and_parts_keep_the_pictures_patches(options: dict[str, Any]) -> None:
    model = tiny("qwen2_vl", fresh=True)
    inputs = ask(model, ROWS[0])

    def say() -> list[list[int]]:
        torch.manual_seed(0)
        return answer(model, inputs, SPEC, **options)

    if "prefill_chunk_size" in options:
        if transformers.__version__.startswith("5.18."):
            pytest.skip("transformers 5.18 itself can't read prompts with M-RoPE in parts")
        assert say() == answer(model, inputs, SPEC)
        return
    torch.manual_seed(0)
    with attach(model.model, SPEC):
        made = model.model.generate(
            **inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True, **options
        )
    want = logits(model, inputs, SPEC)[0, -1]
    for row in made.logits[0]:
        torch.testing.assert_close(row, want, rtol=0, atol=1e-4)
    torch.manual_seed(0)
    assert say() != answer(model, inputs, **options)


def test_a_further_turn_goes_on_with_the_patches_that_were_read() -> None:
    model = tiny("llava")
    inputs, question = ask(model, ROWS[0]), torch.tensor([[20, 33, 21, 40]])
    with attach(model.model, SPEC), torch.no_grad():
        cache = model.model(**inputs, use_cache=True).past_key_values
        edited = model.model(input_ids=question, past_key_values=cache).logits[0, -1]
        with pytest.raises(RuntimeError, match="reads the picture in the vision tower"):
            model.model(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    with torch.no_grad():
        cache = model.model(**inputs, use_cache=True).past_key_values
        plain = model.model(input_ids=question, past_key_values=cache).logits[0, -1]
    assert (edited - plain).abs().max() > 0.05


@pytest.mark.parametrize("goes_on", [False, True])
@torch.no_grad()
def test_pictures_of_later_parts_and_turns_are_their_samples_own(goes_on: bool) -> None:
    model = tiny("llava")
    spec = PAINT(alpha=2, beta=1, layers=LAYERS, scores="received", modulation="heads")
    first: list[Row] = [(SHORT, [0]), ("a b", [1])]
    second: list[Row] = [(LONG, [2]), ("is it?", [3])]

    def talk(first: list[Row], second: list[Row]) -> Tensor:
        begins, ends = ask(model, *first), ask(model, *second)
        mask = torch.cat([begins["attention_mask"], ends["attention_mask"]], 1)
        places = (
            (mask.cumsum(1) - 1)
            .clamp(min=0)
            .split([x["input_ids"].shape[1] for x in (begins, ends)], 1)
        )
        with attach(model.model, spec) as run:
            with run.partial_prompt() if goes_on else nullcontext():
                cache = model.model(**begins, position_ids=places[0]).past_key_values
            ends |= {"attention_mask": mask, "position_ids": places[1]}
            found: Tensor = model.model(**ends, past_key_values=cache).logits[:, -1]
        return found

    pairs = zip(first, second, strict=True)
    alone = torch.cat([talk([begins], [ends]) for begins, ends in pairs])
    torch.testing.assert_close(talk(first, second), alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_another_picture_behind_the_same_system_text_has_its_own_patches() -> None:
    model = tiny("llava")
    one, other = ask(model, (SHORT, [0])), ask(model, (SHORT, [1]))
    start = int(model.expected_image_columns(one)[0].nonzero()[0])
    with attach(model.model, SPEC):
        want = model.model(**other).logits[:, -1]
        cache = model.model(**one).past_key_values
        cache.crop(start - cache.get_seq_length())
        again = {"input_ids": other["input_ids"][:, start:], "pixel_values": other["pixel_values"]}
        got = model.model(**again, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_patches_that_become_one_column_are_averaged() -> None:
    picture = Picture(17, 1 + torch.arange(16).view(4, 4))
    scores = torch.arange(17.0)
    assert merge(scores, picture, 2).tolist() == [3.5, 5.5, 11.5, 13.5]
    assert merge(scores, picture, 1).tolist() == list(range(1, 17))


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("qwen2_vl", PAINT(scores="class"), 'no class token to rank patches by; take scores="rec'),
        ("llava_next", PAINT(), "cuts and pads"),
    ],
)
def test_what_cannot_be_ranked_raises(family: str, spec: PAINT, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        attach(tiny(family).model, spec)
    assert "\n" not in str(error.value)


def test_columns_that_are_no_whole_blocks_of_patches_raise() -> None:
    model: Tiny = tiny("llava")
    inputs = ask(model, ROWS[0])
    columns = model.expected_image_columns(inputs)[0].nonzero().flatten()
    spans = {"image": [(int(columns[0]), int(columns[-1]))]}  # One too few.
    with (
        attach(model.model, SPEC, spans=spans),
        pytest.raises(ValueError, match="can't tell the vision tower's 9 patches from the 8"),
    ):
        model.model(**inputs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paint:alpha=-2", "alpha must be"),
        ("paint:local=1.5", "local must be"),
        ("paint:scores=cls", "did you mean class"),
        ("paint:modulation=head", "did you mean heads"),
    ],
)
def test_wrong_settings_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("rows", ["all", "class", (3,)])
def test_whoever_else_looks_at_the_picture_changes_no_patch(rows: Any) -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[1])
    want = logits(model, inputs, SPEC)
    with capture(model.model, rows, tower="vision") as seen:
        got = logits(model, inputs, SPEC)
    assert seen.captured
    assert torch.equal(got, want)
