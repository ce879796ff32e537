"""GIFT against numbers that the paper's own code produced, in both of its variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vectors import FOLDER, attention_inputs, cases, causal_logits, meta, span, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions.lvlm.content_words import content_tokens
from regaze.interventions.lvlm.gift import boost
from regaze.interventions.lvlm.gift_gaze import keep_heads, normalise, shifts


@pytest.mark.parametrize("case", cases("gift"))
def test_gift_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("gift")
    name, first, last = case["name"], case["vision_start_idx"], case["vision_end_idx"]
    if "layers" in case:
        kept = []
        for layer in case["layers"]:
            rows = inputs[f"saliency.layer{layer}.attn_rows"][0, ..., first : last + 1]
            kept.append(keep_heads(shifts(rows)[:, case["content_query_positions"]]))
        wanted = expected[f"{name}.kept_shift"]
        torch.testing.assert_close(torch.stack(kept), wanted, atol=1e-6, rtol=0)
        saliency = normalise(torch.cat([one.flatten(0, 1) for one in kept]).mean(0))
        found = (case["alpha"] * saliency).exp()
        torch.testing.assert_close(found, expected[f"{name}.multiplier"], rtol=1e-4, atol=0)
        return
    query, key, value = attention_inputs(inputs, name)
    length = key.shape[2]
    logits = causal_logits(query, key, lambda z: z)
    image = span(length, first, last + 1)[None, None, None]
    question = span(length, case["query_start_idx"], case["query_end_idx"] + 1)[None, None, None]
    saliency = torch.zeros(1, 1, 1, length)
    saliency[image] = expected[case["multiplier"]].log()
    row = logits[:, :, -1:]
    logits[:, :, -1:] = row + boost(row.softmax(-1), saliency, image, question, 1.0, 1.0)
    weights = logits.softmax(-1)
    out = mix_values(weights, value).flatten(2)
    for variant in ("llama", "qwen2vl"):
        wanted = expected[f"{name}.{variant}.attn_last_row"]
        torch.testing.assert_close(weights[:, :, -1], wanted, atol=5e-6, rtol=0)
        torch.testing.assert_close(out, expected[f"{name}.{variant}.out"], atol=2e-5, rtol=0)


@pytest.mark.skipif(not (FOLDER / "gift").exists(), reason="no vectors of gift")
def test_words_are_found_in_tokens_as_in_the_released_code() -> None:
    case = meta("gift")["alignment"]
    words, offsets = case["tagged_words"], case["token_offsets"]
    assert content_tokens(words, offsets, "last") == case["expected_token_indices"]
    everywhere = content_tokens(words, offsets)
    assert set(case["expected_token_indices"]) < set(everywhere)
    said = {word["text"] for word in words if word["pos"] in case["content_tags"]}
    assert {case["sentence"][slice(*offsets[n])].strip() for n in everywhere} == said
