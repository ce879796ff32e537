"""PASTA and Prompt Highlighter against numbers that the papers' own code produced."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from vectors import cases, causal_logits, named, vectors

from regaze.hooks.attention import mix_values, row_logits, visible_columns
from regaze.hooks.biases import ColumnBias
from regaze.interventions.lvlm.highlight import _EXTRA, guided
from regaze.interventions.lvlm.pasta import span_bias
from regaze.interventions.lvlm.spans import token_range


@pytest.mark.parametrize("case", cases("pasta", lambda case: "sections" in case))
def test_pasta_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("pasta")
    name, decodes = case["name"], "decode" in case["reads"]
    source = "gqa" if case["reads"].startswith("gqa") else "prefill"
    query, key, value = (inputs[f"{source}.{x}"] for x in "qkv")
    if decodes:
        query = inputs["decode.q"]
        key = torch.cat([key, inputs["decode.k_new"]], 2)
        value = torch.cat([value, inputs["decode.v_new"]], 2)
    batch, columns = len(key), torch.arange(key.shape[2])
    inside = torch.zeros(batch, len(case["sections"]), len(columns), dtype=torch.bool)
    for number, section in enumerate(case["sections"]):
        for sample, (start, end) in enumerate(section):
            inside[sample, number, start:end] = True
    pads = torch.tensor(case.get("pad", [0] * batch))
    prompt = (columns < case["input_len"]).expand(batch, -1)
    sense = "union" if case["function"] == "one-section" else "code"
    bias = span_bias(inside, prompt, case["alpha"], case["mode"], sense)
    heads = torch.zeros(query.shape[1], dtype=torch.bool)
    heads[case["heads"]] = True

    rows = torch.arange(query.shape[2]).expand(batch, -1)
    offset = len(columns) - query.shape[2]
    seen, _ = visible_columns(
        None, rows, len(columns), query_offset=offset, causal=True, window=None
    )
    assert seen is not None
    seen = seen & (columns >= pads[:, None])[:, None, None]
    itself = columns == (rows + offset)[:, None, :, None]
    seen = seen | (itself & (columns < pads[:, None])[:, None, None])
    logits = row_logits(query, key, query.shape[-1] ** -0.5)
    edited = ColumnBias(heads, bias).add(logits)
    torch.testing.assert_close(
        (edited - logits).masked_fill(~seen, 0), expected[f"{name}.bias"], atol=5e-6, rtol=0
    )
    weights = edited.masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected[f"{name}.attn"], atol=2e-6, rtol=0)
    out = mix_values(weights, value).flatten(2)
    torch.testing.assert_close(out, expected[f"{name}.out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("pasta", named("range.")))
def test_texts_are_found_as_in_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("pasta")
    offsets = [tuple(x) for x in inputs[case["name"].rpartition(".")[0] + ".offsets"].tolist()]
    text, span, occurrence = case["text"], case["highlight"], case["occurrence"]
    found = token_range(text, span, offsets, occurrence, touching=True)
    assert list(found) == expected[case["name"]].tolist()
    # Without the token that ends where the text begins.
    start, end = token_range(text, span, offsets, occurrence)
    begin = offsets[start][0]
    assert end == found[1] and offsets[start][1] > text.index(span, begin if occurrence else 0)


@pytest.mark.parametrize("case", cases("prompt_highlighter"))
def test_the_highlighter_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("prompt_highlighter")
    name = case["name"]
    if "scale" in case:
        c, u = inputs["guidance.scores"].chunk(2)
        scores = guided(c, u, case["scale"], "log" if case["log"] else "probability")
        wanted = expected[f"{name}.scores"]
        torch.testing.assert_close(torch.cat([scores, scores]), wanted, atol=1e-5, rtol=1e-5)
        return
    log = math.log(case["weight"])
    added = torch.tensor([log, -_EXTRA - log])[:, None]
    prompt = torch.nn.functional.pad(inputs["highlight"], (0, 1))
    for phase in ("prefill", "decode"):
        query = inputs[f"{phase}.q"]
        key, value = inputs["prefill.k"], inputs["prefill.v"]
        if phase == "decode":
            key = torch.cat([key, inputs["decode.k_new"]], 2)
            value = torch.cat([value, inputs["decode.v_new"]], 2)
        bias = ColumnBias(
            torch.ones(query.shape[1], dtype=torch.bool), added * prompt[: key.shape[2]]
        )
        weights = causal_logits(query, key, bias.add).softmax(-1)
        last = f"{name}.{phase}.attn" + ("_last_row" if phase == "decode" else "")
        got = weights if phase == "prefill" else weights[:, :, -1]
        torch.testing.assert_close(got, expected[last], atol=2e-6, rtol=0)
        out = mix_values(weights, value).flatten(2)
        torch.testing.assert_close(out, expected[f"{name}.{phase}.out"], atol=1e-5, rtol=0)
