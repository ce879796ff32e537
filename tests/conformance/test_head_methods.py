"""SPIN, AD-HH and the heads-guided edit against numbers that the papers' own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import Tensors, attention_inputs, cases, causal_logits, span, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions.lvlm.adhh import silence_text
from regaze.interventions.lvlm.devils import guide_image
from regaze.interventions.lvlm.heads import head_masks
from regaze.interventions.lvlm.spin import head_factors


def check(weights: Tensor, value: Tensor, expected: Tensors, name: str) -> None:
    if f"{name}.attn_last_row" in expected:
        wanted = expected[f"{name}.attn_last_row"]
        torch.testing.assert_close(weights[:, :, -1], wanted, atol=2e-6, rtol=0)
    out = mix_values(weights, value).flatten(2)
    torch.testing.assert_close(out, expected[f"{name}.out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("devils"))
def test_devils_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("devils")
    query, key, value = attention_inputs(inputs, case["name"])
    image = span(key.shape[2], case["img_start"], case["img_end_exclusive"])
    logits = causal_logits(query, key, lambda z: z)
    logits[:, :, -1:] = guide_image(logits[:, :, -1:], image, case["alpha"])
    check(logits.softmax(-1), value, expected, case["name"])


@pytest.mark.parametrize("case", cases("spin"))
def test_spin_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("spin")
    query, key, value = attention_inputs(inputs, case["name"])
    image = span(key.shape[2], case["img_start"], case["img_end_exclusive"])
    logits = causal_logits(query, key, lambda z: z)
    weights = logits.softmax(-1)
    sums = (logits[:, :, -1:].masked_fill(~image, 0)).sum(-1)
    factors = head_factors(sums, case["keep_ratio"], case["small_factor"] or 0.0)
    assert int((factors == 1).sum()) == case["num_kept"]
    weights[:, :, -1:] *= factors[..., None]
    check(weights, value, expected, case["name"])


@pytest.mark.parametrize("case", cases("adhh"))
def test_adhh_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("adhh")
    query, key, value = attention_inputs(inputs, case["name"])
    text = torch.arange(key.shape[2]) >= case["img_start"] + case["img_len"]
    weights = causal_logits(query, key, lambda z: z).softmax(-1)
    listed = head_masks({0: case["heads"] or []}, query.shape[1])[0]
    last = silence_text(weights[:, :, -1:], text, listed, case["threshold"])
    zeroed = (last[0, :, 0, text] == 0).all(-1).nonzero().flatten().tolist()
    assert zeroed == case["heads_zeroed"]
    weights[:, :, -1:] = last
    check(weights, value, expected, case["name"])
