"""PAINT against numbers that the paper's own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vectors import attention_inputs, cases, causal_logits, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions.lvlm.paint import add_shares, choose_patches


@pytest.mark.parametrize("case", cases("paint"))
def test_paint_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("paint")
    name = case["name"]
    if "patches" in case:
        first, last = (
            inputs[f"{name}.layer{case[layer]}.attn"][0, :, 0, 1:].sum(0)
            for layer in ("local_layer", "summary_layer")
        )
        local, summary = choose_patches(first, last, case["local_ratio"])
        assert torch.equal(local.nonzero().flatten(), expected[f"{name}.local_tokens"])
        assert torch.equal(summary.nonzero().flatten(), expected[f"{name}.summary_tokens"])
        return
    query, key, value = attention_inputs(inputs, name)
    shares = torch.zeros(key.shape[2])
    sets = case["token_sets"]
    shares[case["img_start"] + expected[f"{sets}.local_tokens"]] = case["alpha_local"]
    shares[case["img_start"] + expected[f"{sets}.summary_tokens"]] = case["beta_summary"]
    logits = causal_logits(query, key, lambda z: z)
    row = logits[:, :, -1].clone()
    logits[:, :, -1] = torch.where(row.isfinite(), add_shares(row, shares), row)
    weights = logits.softmax(-1)
    wanted = expected[f"{name}.attn_last_row"]
    torch.testing.assert_close(weights[:, :, -1], wanted, atol=2e-6, rtol=0)
    out = mix_values(weights, value).flatten(2)
    torch.testing.assert_close(out, expected[f"{name}.out"], atol=1e-5, rtol=0)
