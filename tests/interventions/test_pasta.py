"""PASTA: spans by text, columns and image; kernels that take the bias; what can't be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, answer, ask, literally, logits
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import PAI, PASTA, VHR, Intervention, from_dict
from regaze.interventions.lvlm.pasta import span_bias
from regaze.interventions.lvlm.spans import read_tokens, token_range

LAYERS = (0, 1, 2)
WHERE: dict[str, Any] = {"layers": LAYERS, "alpha": 0.05}


def columns_of(model: Any, inputs: dict[str, Any], text: str) -> tuple[int, int]:
    """Columns of a text, found by its tokens' own spelling."""
    ids = inputs["input_ids"][0]
    tokenizer = model.processor.tokenizer
    image = model.expected_image_columns(inputs)[0]
    start = int(image.nonzero().max()) + 1
    written, offsets = read_tokens(tokenizer, ids[start:].tolist())
    assert written == tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False)
    first, last = token_range(written, text, offsets)
    return start + first, start + last


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_a_text_is_its_columns(family: str) -> None:
    model = tiny(family)
    inputs = ask(model, (SHORT, [0]))
    span = columns_of(model, inputs, "dog")
    by_text, by_columns = (
        logits(model, inputs, PASTA(spans=(where,), **WHERE)) for where in ("dog", span)
    )
    assert torch.equal(by_text, by_columns)
    assert not torch.equal(by_text[:, -1], logits(model, inputs)[:, -1])
    # Rows before the span see one factor everywhere; without a mask they aren't run again.
    if family == "llava":
        assert torch.equal(by_text[:, : span[0]], logits(model, inputs)[:, : span[0]])
    by_text_again = answer(model, inputs, PASTA(spans=("dog",), **WHERE))
    assert by_text_again == answer(model, inputs, PASTA(spans=(span,), **WHERE))


def test_padding_does_not_move_columns() -> None:
    model = tiny("llava")
    spec = PASTA(spans=((2, 5), "<image>"), **WHERE)
    batch = logits(model, ask(model, (SHORT, [0]), (LONG, [1])), spec)[:, -1]
    for sample, row in enumerate(((SHORT, [0]), (LONG, [1]))):
        alone = logits(model, ask(model, row), spec)[0, -1]
        torch.testing.assert_close(batch[sample], alone, rtol=0, atol=1e-4)


def test_text_of_a_prompt_without_a_picture_is_steered_too() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, []))
    spec = PASTA(spans=("dog",), **WHERE)
    assert not torch.equal(logits(model, inputs, spec)[:, -1], logits(model, inputs)[:, -1])
    # Through the cache as in one block.
    ids = inputs["input_ids"]
    whole = logits(model, inputs, spec)[:, -1]
    with attach(model.model, spec, processor=model.processor) as run, torch.no_grad():
        with run.partial_prompt():
            cache = model.model(ids[:, :2], use_cache=True).past_key_values
        parts = model.model(ids[:, 2:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("order", [0, 1])
def test_it_takes_its_turn_with_others(attention: str, order: int) -> None:
    model = tiny("qwen2_vl", attn_implementation=attention)
    inputs = ask(model, (SHORT, [0]))
    pasta = PASTA(spans=((1, 4),), heads=((0, 1), (1, 0), (2, 3)), alpha=0.05)
    specs: list[Intervention] = [pasta, PAI(alpha=0.5, layers=LAYERS)]
    specs = [specs[order], specs[1 - order]]
    with attach(model.model, *specs, processor=model.processor) as run, torch.no_grad():
        edited = model.model(**inputs).logits
    with literally(model, inputs, run.specs), torch.no_grad():
        literal = model.model(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-5 * float(literal.std()))


def test_a_comparison_shares_only_the_beginning_that_nothing_points_into() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    image = int(model.expected_image_columns(inputs)[0].nonzero().min())
    for specs in (
        [PASTA(spans=("<image>",), **WHERE), VHR(layers=LAYERS)],
        [VHR(layers=LAYERS), PASTA(spans=((image + 2, image + 5),), **WHERE)],
    ):
        with attach(model.model, *specs) as run, torch.no_grad():
            edited = model.model(**inputs).logits
        with literally(model, inputs, run.specs), torch.no_grad():
            literal = model.model(**inputs).logits
        torch.testing.assert_close(edited, literal, rtol=0, atol=1e-5 * float(literal.std()))
    before = PASTA(spans=((1, image),), **WHERE)
    with pytest.raises(NotImplementedError, match="VHR.*PASTA"):
        logits(model, inputs, before, VHR())


def test_two_of_them_add_up() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    first = PASTA(spans=((1, 4),), heads=((0, 1), (1, 0)), alpha=0.05)
    second = PASTA(spans=("<image>",), heads=((0, 1), (0, 2)), alpha=3, mode="include")
    with attach(model.model, first, second) as run, torch.no_grad():
        edited = model.model(**inputs).logits
    with literally(model, inputs, run.specs), torch.no_grad():
        literal = model.model(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-5 * float(literal.std()))


def test_spans_are_one_set_unless_the_code_is_asked_for() -> None:
    inside = torch.zeros(1, 2, 6, dtype=torch.bool)
    inside[0, 0, 1:3] = inside[0, 1, 2:4] = True
    prompt = torch.tensor([[True] * 5 + [False]])
    out, both = math.log(0.1), 0.0
    assert span_bias(inside, prompt, 0.1).tolist()[0] == pytest.approx([out, 0, 0, 0, out, 0])
    code = span_bias(inside, prompt, 0.1, sense="code")[0].tolist()
    assert code == pytest.approx([2 * out, out, both, out, 2 * out, 0])
    assert not span_bias(torch.zeros_like(inside), prompt, 0.1).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spans": []}, "none is given.*spans"),
        ({"spans": ["cat"]}, "'cat' isn't in prompt 0"),
        ({"spans": ["Dog"]}, "capitals"),
        ({"spans": [[0, 999]]}, "outside of prompt 0, which has"),
        ({"spans": [[3, 3]]}, "spans must hold"),
        ({"spans": [[-1, 3]]}, "spans must hold"),
        ({"spans": [""]}, "spans must hold"),
        ({"spans": "dog"}, "spans must be a list"),
        ({"alpha": 0}, "alpha"),
        ({"heads": [[0, 9]], "layers": None}, r"\[0,9\].*4 heads"),
        ({"heads": None, "layers": None}, "none are given"),
        ({"mode": "exclud"}, "did you mean exclude"),
    ],
)
def test_what_cannot_be_says_why(fields: dict[str, Any], message: str) -> None:
    model = tiny("llava")
    given = {"name": "pasta", "layers": [0], "spans": ["dog"], **fields}
    with pytest.raises(ValueError, match=message):
        logits(model, ask(model, (SHORT, [0])), from_dict(given))


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="processor"):
        attach(tiny("llava").model, PASTA(spans=("dog",), layers=(0,)))
    span = PASTA(spans=("dog",))
    assert span.literal() is None and not span.shares_prefix
    assert replace(span, spans=("<image>",)).shares_prefix


@pytest.mark.parametrize("text", ["a café is open", "日本 and 🦊 foxes", "x"])
def test_tokens_that_end_each_others_characters_are_read(text: str) -> None:
    class Bytes:
        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    ids = list(text.encode())
    written, offsets = read_tokens(Bytes(), ids)
    assert written == text
    for span in text.split():
        start, end = token_range(written, span, offsets)
        assert bytes(ids[start:end]).decode() == span
