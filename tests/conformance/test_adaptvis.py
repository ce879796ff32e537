"""AdaptVis and ScalingVis against numbers that the paper's own code produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vectors import cases, causal_logits, span, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions.lvlm.adaptvis import choose_weights, scale_image


@pytest.mark.parametrize("case", cases("adaptvis"))
def test_adaptvis_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("adaptvis")
    name = case["name"]
    if "threshold" in case:
        low, high = case["weight_low_confidence"], case["weight_high_confidence"]
        chosen = choose_weights(inputs["choose.logits"], case["threshold"], low, high)
        if name.startswith("judge"):
            # The raw logit in the place of a probability: a defect that isn't followed.
            raw = torch.where(inputs["choose.logits"].amax(-1) < case["threshold"], low, high)
            assert torch.equal(expected[f"{name}.weight"], raw)
            assert not torch.equal(chosen, raw)
        else:
            assert torch.equal(chosen, expected[f"{name}.weight"])
        return
    source = name if name in ("decode", "padded") else "prefill"
    query = inputs[f"{source}.q"]
    if name == "decode":
        key = torch.cat([inputs["prefill.k"], inputs["decode.k_new"]], 2)
        value = torch.cat([inputs["prefill.v"], inputs["decode.v_new"]], 2)
    else:
        key, value = inputs[f"{source}.k"], inputs[f"{source}.v"]
    logits, padding = causal_logits(query, key, lambda z: z), case.get("pad", 0)
    logits[..., padding:, :padding] = -torch.inf
    if name not in ("decode", "layer32"):
        image = span(key.shape[2], case["img_start"], case["img_end_exclusive"])
        logits[:, :, -1] = scale_image(logits[:, :, -1], image, case["weight"])
    weights = logits.softmax(-1)
    if f"{name}.attn_last_row" in expected:
        wanted = expected[f"{name}.attn_last_row"]
        torch.testing.assert_close(weights[:, :, -1], wanted, atol=2e-6, rtol=0)
    out = mix_values(weights, value).flatten(2)
    wanted = expected[f"{name}.out_valid" if padding else f"{name}.out"]
    torch.testing.assert_close(out[:, padding:], wanted, atol=1e-5, rtol=0)
