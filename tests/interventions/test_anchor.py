"""AnchorAttention: prompts in stripes, decoding as always; batches, maps, and what can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, answer_and_report, ask, logits
from methods import LAYERS
from tiny import tiny

from regaze.hooks import attach
from regaze.interventions import PAI, VHR, AnchorAttention, from_dict
from regaze.interventions.lvlm.anchor_stripes import anchored

SPEC = AnchorAttention(theta=0.1, block=2, step=2, init=2)


@pytest.mark.parametrize(("theta", "wide"), [(-0.5, 8), (0.3, 8), (0.3, 6), (100.0, 8)])
def test_each_row_sees_near_columns_and_stripes_once(theta: float, wide: int) -> None:
    made = torch.Generator().manual_seed(0)
    count, block, step, init = 29, 2, 3, 4
    query, key, value = (torch.randn(h, count, 8, generator=made) for h in (4, 2, 2))
    value = value[..., :wide]
    spec = AnchorAttention(theta=theta, block=block, step=step, init=init)
    got, density, maps = anchored(query, key, value, 8**-0.5, spec, maps=True)
    # Row by row, as the paper reads.
    key, value = (x.repeat_interleave(2, 0) for x in (key, value))
    z = query @ key.transpose(1, 2) * 8**-0.5
    before = torch.ones(count, count, dtype=torch.bool).tril()
    starts = torch.arange(count) // (block * step) * block * step
    near = before & ((torch.arange(count) < init) | (torch.arange(count) >= starts[:, None]))
    anchors, kept = z.masked_fill(~near, -torch.inf).amax(-1), near.expand(4, -1, -1).clone()
    for first in range(0, count, block):
        some, start = slice(first, first + block), int(starts[first])
        rows = slice(start, start + block * step)
        mean = torch.einsum("hd,hcd->hc", query[:, some].mean(1), key) * 8**-0.5
        seen = mean >= anchors[:, some].mean(1, keepdim=True) - theta
        kept[:, rows, :start] |= seen[:, None, :start]
    want = z.masked_fill(~kept, -torch.inf).softmax(-1)
    torch.testing.assert_close(got, want @ value, rtol=0, atol=2e-6)
    torch.testing.assert_close(maps, want, rtol=0, atol=2e-6)
    assert density == pytest.approx(kept.sum().item() / (4 * count * (count + 1) / 2))
    assert (density == 1) == (theta == 100)


def test_a_threshold_that_admits_all_is_dense_attention() -> None:
    model = tiny("qwen2_vl")
    inputs = ask(model, (LONG, [0]))
    plain = logits(model, inputs)
    wide = AnchorAttention(theta=1e6, block=2, step=2, init=2)
    torch.testing.assert_close(logits(model, inputs, wide), plain, rtol=2e-6, atol=1e-5)
    idle = SPEC.idle()
    assert torch.equal(logits(model, inputs, idle), plain)
    # A prompt of one superblock is read as always.
    assert torch.equal(logits(model, inputs, AnchorAttention()), plain)
    assert not torch.allclose(logits(model, inputs, SPEC), plain, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "gemma3", "paligemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_left_padded_batch_reads_as_single_samples_do(family: str, attention: str) -> None:
    model = tiny(family, attn_implementation=attention)
    rows = (SHORT, [0]), (LONG, [1])
    batch = logits(model, ask(model, *rows), SPEC)
    for sample, row in enumerate(rows):
        alone = logits(model, ask(model, row), SPEC)[0]
        torch.testing.assert_close(batch[sample][-len(alone) :], alone, rtol=0, atol=2e-4)


@pytest.mark.parametrize("theta", [-1e3, 1e3], ids=["no stripes", "all"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, theta: float) -> None:
    # With other thresholds rounding chooses other stripes of this random model.
    spec, asked = replace(SPEC, theta=theta), ask(tiny("llava"), (LONG, [0]))
    full, model = tiny("llava"), tiny("llava", dtype=dtype)
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in asked.items()}
    off = {}
    for name, specs in (("plain", ()), ("sparse", (spec,))):
        off[name] = (logits(model, half, *specs).float() - logits(full, asked, *specs)).abs().max()
    assert off["sparse"] < 2 * off["plain"]


def test_the_report_tells_density_error_and_time() -> None:
    model = tiny("llava")
    _, report = answer_and_report(model, ask(model, (LONG, [])), SPEC)
    (one,) = report.interventions
    assert one.fired and [layer.layer for layer in one.layers] == [0, 1, 2]
    assert all(layer.calls == 1 and 0 < layer.effect < 1 for layer in one.layers)
    assert "density 0." in one.note and "times dense attention's time" in one.note


def test_decode_steps_are_the_models_own() -> None:
    model = tiny("llava")
    inputs = ask(model, (LONG, [0]))
    with attach(model.model, SPEC) as run, torch.no_grad():
        cache = model.model(**inputs, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[5]]), "past_key_values": cache}
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        got = model.model(**step, attention_mask=mask).logits
    assert run.report().interventions[0].layers[0].calls == 1
    with torch.no_grad():
        with attach(model.model, SPEC):
            cache = model.model(**inputs, use_cache=True).past_key_values
        want = model.model(
            input_ids=torch.tensor([[5]]), past_key_values=cache, attention_mask=mask
        ).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_what_cannot_be_says_why() -> None:
    model = tiny("llava")
    inputs = ask(model, (LONG, [0]))
    for fields, message in (
        ({"theta": "much"}, "theta"), ({"block": 0}, "block must be a number of 1 or more"),
        ({"step": 1.5}, "step must be"), ({"init": True}, "init must be"),
        ({"layers": [3]}, "layer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            attach(model.model, from_dict({"name": "anchor", **fields}))
    with pytest.raises(ValueError, match="attends within a window already"):
        attach(tiny("gemma3").model, AnchorAttention(layers=(0,)))
    with pytest.raises(NotImplementedError, match="layer . is edited by an intervention that"):
        logits(model, inputs, SPEC, PAI(layers=LAYERS))
    with pytest.raises(NotImplementedError, match="can't share a pass"):
        logits(model, inputs, replace(SPEC, layers=(0,)), VHR(layers=(1, 2)))
    with attach(model.model, SPEC), torch.no_grad():
        cache = model.model(
            **{k: v[:, :6] if k in ("input_ids", "attention_mask") else v
               for k, v in ask(model, (LONG, [])).items()}, use_cache=True,
        ).past_key_values  # fmt: skip
        rest: dict[str, Any] = ask(model, (LONG, []))
        with pytest.raises(NotImplementedError, match="the prompt comes in parts"):
            model.model(input_ids=rest["input_ids"][:, 6:], past_key_values=cache)
