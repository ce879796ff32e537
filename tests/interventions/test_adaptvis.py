"""AdaptVis: the prompt's last row is run again as a whole second run would give it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import LONG, SHORT, Row, answer, answer_and_report, ask, logits
from tiny import tiny
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, QuantizedLayer

from regaze.hooks import attach
from regaze.interventions import PAI, AdaptVis, ScalingVis
from regaze.interventions.lvlm.adaptvis import choose_weights

LAYERS = (0, 1, 2)
ROWS: list[Row] = [(SHORT, [0]), (LONG, [1]), (SHORT, [2]), (LONG, [])]


def weight_of(model: Any, row: Row, spec: AdaptVis) -> float:
    last = logits(model, ask(model, row))[:, -1]
    return float(choose_weights(last, spec.threshold, spec.unsure, spec.sure))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_it_gives_what_scaling_by_the_chosen_weight_gives_in_a_mixed_batch(family: str) -> None:
    model = tiny(family)
    sure = [float(logits(model, ask(model, r))[0, -1].softmax(-1).max()) for r in ROWS[:3]]
    spec = AdaptVis(unsure=0.25, sure=2.0, threshold=round(max(sure), 2), layers=LAYERS)
    weights = [weight_of(model, row, spec) for row in ROWS[:3]]
    assert set(weights) == {0.25, 2.0}
    batch = answer(model, ask(model, *ROWS), spec)
    for row, weight, got in zip(ROWS[:3], weights, batch, strict=False):
        scaled = ScalingVis(weight=weight, layers=LAYERS)
        assert got == answer(model, ask(model, row), scaled)[0]
    assert batch[3] == answer(model, ask(model, ROWS[3]))[0]


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_the_cache_holds_the_second_runs_keys(kind: str) -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, ROWS[0])
    config, length = model.model.config.get_text_config(), inputs["input_ids"].shape[1]

    def keys(spec: Any) -> Any:
        cache: Any = (
            StaticCache(config=config, max_cache_len=length + 8)
            if kind == "static"
            else DynamicCache(config=config)
        )
        with attach(model.model, spec), torch.no_grad():
            model.model(**inputs, past_key_values=cache)
        return [(one.keys[:, :, :length], one.values[:, :, :length]) for one in cache.layers]

    decided = keys(AdaptVis(unsure=2.0, sure=2.0, layers=LAYERS))
    plain = keys(AdaptVis(unsure=1.0, sure=1.0, layers=LAYERS))
    for got, want, before in zip(
        decided, keys(ScalingVis(weight=2.0, layers=LAYERS)), plain, strict=True
    ):
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert torch.equal(got[0][:, :, :-1], before[0][:, :, :-1])
    assert not torch.equal(decided[-1][0][:, :, -1], plain[-1][0][:, :, -1])


def test_other_edits_act_in_both_runs() -> None:
    model = tiny("llava")
    inputs, pai = ask(model, ROWS[1]), PAI(alpha=0.5, layers=LAYERS)
    both = answer(model, inputs, pai, AdaptVis(unsure=0.2, sure=0.2, layers=LAYERS))
    assert both == answer(model, inputs, pai, ScalingVis(weight=0.2, layers=LAYERS))
    contrast = PAI(alpha=0.5, layers=LAYERS, gamma=1.5, plausibility=0)
    both = answer(model, inputs, contrast, AdaptVis(unsure=2.0, sure=2.0, layers=LAYERS))
    assert both == answer(model, inputs, contrast, ScalingVis(weight=2.0, layers=LAYERS))


def test_a_second_question_is_decided_anew() -> None:
    model = tiny("llava")
    inputs = ask(model, ROWS[0])
    question = torch.tensor([[20, 33, 21, 40]])

    def talk(first: Any, second: Any) -> Any:
        with torch.no_grad():
            with attach(model.model, first):
                cache = model.model(**inputs, use_cache=True).past_key_values
                with attach(model.model, PAI(alpha=0)):
                    out = model.model(input_ids=question, past_key_values=cache)
            return out.logits[0, -1]

    spec = AdaptVis(unsure=0.5, sure=2.0, threshold=1.01, layers=LAYERS)
    always = ScalingVis(weight=0.5, layers=LAYERS)
    torch.testing.assert_close(talk(spec, spec), talk(always, always), rtol=0, atol=1e-4)


def test_weights_of_one_and_rows_that_keep_theirs_are_bit_for_bit_the_models() -> None:
    model = tiny("llava")
    inputs = ask(model, *ROWS)
    plain = logits(model, inputs)
    sure = AdaptVis(unsure=0.2, sure=1.0, threshold=0.0, layers=LAYERS)  # Always sure.
    assert torch.equal(logits(model, inputs, sure), plain)
    generated, report = answer_and_report(model, inputs, sure)
    assert generated == answer(model, inputs)
    assert not report.fired


def test_generated_rows_are_not_edited() -> None:
    model = tiny("llava")
    _, report = answer_and_report(model, ask(model, ROWS[0]), ScalingVis(2, layers=LAYERS))
    assert [(one.layer, one.calls) for one in report.interventions[0].layers] == [
        (layer, 1) for layer in LAYERS
    ]


@pytest.mark.parametrize("value", [-1, 101, "1", None, True])
def test_settings_out_of_their_domain_raise(value: Any) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        ScalingVis(weight=value)
    with pytest.raises(ValueError, match="unsure must be"):
        AdaptVis(unsure=value)
    with pytest.raises(ValueError, match="threshold must be"):
        AdaptVis(threshold=2)


class _Halves(QuantizedLayer):
    """Keeps columns in half precision, as packages for quantised caches do in fewer bits."""

    def _quantize(self, tensor: Any, axis: Any = 0) -> Any:
        return tensor.half()

    def _dequantize(self, q_tensor: Any) -> Any:
        return q_tensor.float()


def test_a_cache_whose_columns_are_kept_elsewhere_is_refused() -> None:
    model = tiny("llava")
    depth = len(model.tower.layers)
    spec = AdaptVis(unsure=0.25, sure=2.0, threshold=0.5, layers=LAYERS)
    with pytest.raises(NotImplementedError, match="into a cache of _Halves"):
        logits(
            model,
            ask(model, ROWS[0]),
            spec,
            past_key_values=Cache(layers=[_Halves(residual_length=4) for _ in range(depth)]),
        )
