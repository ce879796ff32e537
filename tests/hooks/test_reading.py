"""The prompt as an attachment reads it, or is given it, and its errors when it can't see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import CONTRASTS, EDITS, MAIN
from tiny import Tiny, tiny
from torch import Tensor
from transformers import DynamicCache

from regaze.hooks import attach


def embedded(model: Tiny, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The same prompt as embeddings, as callers who mix in their own do."""
    noted: list[Tensor] = []
    tower: Any = model.model.get_decoder()
    handle = tower.register_forward_pre_hook(
        lambda _, __, kwargs: noted.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model.model(**inputs)
    handle.remove()
    return {"inputs_embeds": noted[0], "attention_mask": inputs["attention_mask"]}


def spans_of(model: Tiny, inputs: dict[str, Any]) -> list[dict[str, list[tuple[int, int]]]]:
    columns = [row.nonzero().flatten().tolist() for row in model.expected_image_columns(inputs)]
    return [{"image": [(at[0], at[-1] + 1)] if at else []} for at in columns]


@pytest.mark.parametrize("name", MAIN)
def test_spans_tell_what_ids_would(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]), (SHORT, []))
    mixed = embedded(model, inputs)
    with attach(model.model, EDITS[name].acts, spans=spans_of(model, inputs)), torch.no_grad():
        told = model.model(**inputs).logits
        embeddings = model.model(**mixed).logits
        generated = model.model.generate(**inputs, max_new_tokens=3, num_beams=2)
    assert torch.equal(told, logits(model, inputs, EDITS[name].acts))
    torch.testing.assert_close(embeddings, told, rtol=0, atol=1e-4)
    with attach(model.model, EDITS[name].acts):
        assert torch.equal(generated, model.model.generate(**inputs, max_new_tokens=3, num_beams=2))


@pytest.mark.parametrize("name", ["pai", "vaf"])
def test_spans_choose_a_part_of_the_image(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    whole = logits(model, inputs, EDITS[name].acts)
    with attach(model.model, EDITS[name].acts, spans={"image": [(3, 6)]}), torch.no_grad():
        part = model.model(**inputs).logits
    assert (part - whole)[0, -1].abs().max() > 0.01


def test_one_mapping_of_spans_serves_every_row() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (SHORT, [1]))
    (spans, other) = spans_of(model, inputs)
    assert spans == other
    with attach(model.model, EDITS["vaf"].acts, spans=spans), torch.no_grad():
        told = model.model(**inputs).logits
    assert torch.equal(told, logits(model, inputs, EDITS["vaf"].acts))


def test_embeddings_without_spans_raise_and_say_so() -> None:
    model = tiny("llava")
    given = embedded(model, ask(model, (SHORT, [0])))
    with attach(model.model, EDITS["pai"].acts), pytest.raises(ValueError, match="spans="):
        model.model(**given)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"image": [(0, 2)]}] * 2, "2 rows, the batch has 3"),
        ({"image": [(0, 99)]}, "99"),
        ({"picture": [(0, 2)]}, "picture"),
    ],
)
def test_spans_that_do_not_fit_the_batch_raise(spans: Any, message: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (SHORT, [1]), (SHORT, [2]))
    with (
        attach(model.model, EDITS["pai"].acts, spans=spans),
        pytest.raises(ValueError, match=message),
    ):
        model.model(**inputs)


def test_a_batch_that_changes_within_a_prompt_raises() -> None:
    model = tiny("llava")
    with attach(model.model, EDITS["pai"].acts), torch.no_grad():
        two = model.model(**ask(model, (SHORT, [0]), (SHORT, [1])), use_cache=True)
        three = two.past_key_values
        for layer in three.layers:
            layer.keys, layer.values = layer.keys[[0, 1, 0]], layer.values[[0, 1, 0]]
        with pytest.raises(ValueError, match="from 2 to 3 rows"):
            model.model(input_ids=torch.tensor([[7]] * 3), past_key_values=three)


@pytest.mark.parametrize("call", ["positional", "keyword", "no mask", "the inner model"])
def test_the_prompt_is_read_however_the_model_is_called(call: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    needs_scores = call == "the inner model"
    specs = [
        EDITS[name].acts
        for name in MAIN
        if not (needs_scores and EDITS[name].decides == "prediction")
    ]
    want = logits(model, inputs, *specs)
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with attach(model.model, *specs), torch.no_grad():
        if call == "positional":
            got = model.model(inputs["input_ids"], **rest).logits
        elif call == "keyword":
            got = model.model(**inputs).logits
        elif call == "no mask":
            got = model.model(input_ids=inputs["input_ids"], **rest).logits
        else:
            got = model.model.lm_head(model.model.model(**inputs).last_hidden_state)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONTRASTS)
def test_what_edits_scores_raises_where_none_are_made(name: str) -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, CONTRASTS[name].acts, processor=model.processor), torch.no_grad():
        with pytest.raises(NotImplementedError, match="called without its output layer"):
            model.model.model(**inputs)
        cache = model.model(**inputs).past_key_values
        with pytest.raises(NotImplementedError, match="called without its output layer"):
            model.model.model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_the_beginning_of_a_prompt_may_be_read_without_scores() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    words, pictures = inputs.pop("input_ids"), {"pixel_values": inputs["pixel_values"]}
    dola = CONTRASTS["dola"].acts
    with attach(model.model, dola) as run, torch.no_grad():
        want = model.model(input_ids=words, **pictures).logits[:, -1]
        cache = DynamicCache(config=model.model.config.get_text_config())
        with run.partial_prompt():
            model.model.model(input_ids=words[:, :12], past_key_values=cache, **pictures)
        got = model.model(input_ids=words[:, 12:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_what_waits_for_a_prediction_raises_where_none_is_made() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    with attach(model.model, EDITS["adaptvis"].acts), torch.no_grad():
        with pytest.raises(NotImplementedError, match="without its output layer"):
            model.model.model(**inputs)
        with pytest.raises(RuntimeError, match="was called directly"):
            model.model.forward(**inputs)
        assert model.model.model(**ask(model, (SHORT, []))) is not None  # Nothing to wait for.


def test_the_text_tower_can_be_called_alone() -> None:
    model = tiny("llava")
    ids = ask(model, (SHORT, []))["input_ids"]
    tower: Any = model.model.get_decoder()
    with torch.no_grad():
        plain = tower(ids).last_hidden_state
        with attach(model.model, EDITS["pai"].acts, EDITS["vhr"].acts):
            assert torch.equal(tower(ids).last_hidden_state, plain)
            assert torch.equal(tower(ids, torch.ones_like(ids)).last_hidden_state, plain)


def test_tuples_are_returned_where_they_are_asked_for() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    for name in MAIN:
        with attach(model.model, EDITS[name].acts), torch.no_grad():
            as_tuple = model.model(**inputs, return_dict=False)[0]
        assert torch.equal(as_tuple, logits(model, inputs, EDITS[name].acts))


def packed(model: Tiny) -> dict[str, Any]:
    """Two prompts in one row, told apart by positions that begin anew."""
    parts = [ask(model, (SHORT, [0])), ask(model, (LONG, [1]))]
    inputs = {
        name: torch.cat([part[name] for part in parts], 1 if name == "input_ids" else 0)
        for name in ("input_ids", "pixel_values")
    }
    lengths = [part["input_ids"].shape[1] for part in parts]
    return {**inputs, "position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}


@pytest.mark.parametrize("told", ["positions", "kernel", "mask"])
def test_several_prompts_in_one_row_raise(told: str) -> None:
    model = tiny("llava")
    inputs = packed(model)
    positions = inputs["position_ids"]
    words = "several prompts stand in one row of the batch"
    if told == "kernel":
        inputs |= {"position_ids": torch.arange(positions.shape[1])[None], "cu_seq_lens_q": [0, 9]}
    if told == "mask":
        number = (positions == 0).cumsum(1)
        same = number[:, None] == number[..., None]
        inputs = {**inputs, "attention_mask": same.tril()[:, None], "position_ids": None}
        words = "hides tokens from the last row that see themselves"
    with pytest.raises(NotImplementedError, match=words):
        logits(model, inputs, EDITS["vaf"].acts)


def test_a_mask_of_four_dimensions_shows_what_is_padding() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    real = inputs["attention_mask"].bool()
    causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    seen = (real[:, None] & causal)[:, None]
    positions = (real.cumsum(1) - 1).clamp(min=0)
    told = {**inputs, "position_ids": positions}
    want = logits(model, told, EDITS["vaf"].acts)
    assert torch.equal(logits(model, {**told, "attention_mask": seen}, EDITS["vaf"].acts), want)
