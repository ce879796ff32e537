"""VAR, PAI and VAF against numbers that the papers' own code produced.

The folder comes from REGAZE_CONFORMANCE, so that other vector sets of the same layout can be run
through these tests; every case that a folder's meta.json lists is a test.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import attention_inputs, cases, causal_logits, span, vectors

from regaze.hooks.attention import mix_values
from regaze.interventions import VAR
from regaze.interventions.lvlm.contrasts import guide
from regaze.interventions.lvlm.pai import boost_image
from regaze.interventions.lvlm.sinks import sink_values
from regaze.interventions.lvlm.vaf import scale_logits
from regaze.interventions.lvlm.var import redistribution, sums_and_bounds


@pytest.mark.parametrize("case", cases("var"))
def test_var_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("var")
    if "layers" in case:
        for layer in case["layers"]:
            hidden = inputs[f"{case['name']}.layer{layer}.hidden_states"]
            phi = sink_values(hidden, case["sink_dims"])
            wanted = expected[f"{case['name']}.layer{layer}.phi"]
            torch.testing.assert_close(phi, wanted, atol=1e-5, rtol=1e-5)
            found = (phi[0] > case["tau"]).nonzero().flatten()
            assert torch.equal(found, expected[f"{case['name']}.layer{layer}.indices"])
        return
    weights, code, paper = inputs[case["input"]], case["code_sense"], case["paper_sense"]
    image_end = case["image_start"] + case["image_len"]
    image = span(weights.shape[-1], case["image_start"], image_end)[None]
    sinks = torch.zeros_like(image)
    sinks[:, case["sink_indices"]] = True
    both = (
        VAR(rho=code["rho"], p=code["p"], floor=code["summ"], sense="code"),
        VAR(
            rho=paper["rho_non_sink_ratio_at_least"],
            p=paper["p_removed_fraction"],
            floor=code["summ"],
        ),
    )
    for spec in both:
        change = redistribution(weights.float(), *sums_and_bounds(image, sinks, spec))
        edited = weights.float() * (1 + change)
        if case["phase"] == "prefill":
            before_image_end = torch.arange(weights.shape[2])[:, None] < image_end
            edited = torch.where(before_image_end, weights.float(), edited)
        wanted = expected[f"{case['name']}.attn"]
        half = wanted.dtype == torch.float16
        rtol, atol = (2e-3, 1e-4) if half else (0, 1e-6)
        torch.testing.assert_close(edited, wanted.float(), rtol=rtol, atol=atol)
        selected = expected[f"{case['name']}.head_selected"]
        moves = (change != 0).any(-1)
        if 0 < spec.keep < 1:
            assert torch.equal(moves, selected)
        else:
            assert not (moves & ~selected).any()
        if case["rows_changed"] == 0:
            assert torch.equal(edited, weights.float())


@pytest.mark.parametrize("case", cases("pai"))
def test_pai_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("pai")
    name = case["name"]
    if "gamma" in case:
        scores = guide(inputs["cfg.scores"], inputs["cfg.uncond_logits"], case["gamma"])
        torch.testing.assert_close(scores, expected[f"{name}.scores"], atol=1e-5, rtol=1e-5)
        return
    query, key, value = attention_inputs(inputs, name)
    image = span(key.shape[2], case.get("img_start", 0), case.get("img_end_exclusive", 0))
    logits = causal_logits(query, key, lambda z: z)
    # The text-only branch runs without the edit.
    if not case.get("use_cfg"):
        logits[:, :, -1] = boost_image(logits[:, :, -1], image, case["alpha"])
    weights = logits.softmax(-1)
    torch.testing.assert_close(
        weights[:, :, -1], expected[f"{name}.attn_last_row"], atol=2e-6, rtol=0
    )
    out = mix_values(weights, value).flatten(2)
    torch.testing.assert_close(out, expected[f"{name}.out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("vaf"))
def test_vaf_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("vaf")
    name, first = case["name"], case["system_len"]
    query, key, value = attention_inputs(inputs, name)
    end = first + case["image_len"]
    rows = query.shape[2]
    system, image = span(key.shape[2], 0, first), span(key.shape[2], first, end)
    # A block of at most `end` rows counts as decoding in the released code: every row is edited.
    acts = torch.arange(rows)[:, None] >= (end if rows > end else 0)

    def edit(logits: Tensor) -> Tensor:
        scaled = scale_logits(logits, image, system, case["enhance"], case["suppress"])
        return torch.where(acts, scaled, logits)

    weights = causal_logits(query, key, edit).softmax(-1)
    out = mix_values(weights, value).flatten(2)
    torch.testing.assert_close(out, expected[f"{name}.out"], atol=1e-5, rtol=0)
    wanted = {k: v for k, v in expected.items() if k.startswith(f"{name}.attn")}
    assert wanted
    for key_name, tensor in wanted.items():
        start = int(key_name.rsplit("_", 1)[1]) if "from_row" in key_name else 0
        torch.testing.assert_close(weights[:, :, start:], tensor, atol=2e-6, rtol=0)
