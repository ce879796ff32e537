"""VCD, ICD, AvisC, M3ID and DoLa against numbers that the papers' own code produced."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import cases, meta, named, vectors

from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.tokens import Kind, TokenMap
from regaze.interventions import ICD, M3ID
from regaze.interventions.lvlm import avisc, dola, icd, m3id
from regaze.interventions.lvlm.contrasts import contrast
from regaze.interventions.lvlm.noise import add_noise, factors

close = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=0)


def strengths(case: dict[str, Any]) -> tuple[float, float]:
    used = case.get("effective", case)
    return used["alpha"], used["beta"]


def step(generated: int, batch: int = 1) -> Pass:
    """The pass behind so many generated tokens."""
    kinds = torch.full((batch, 3), int(Kind.IMAGE), dtype=torch.int8)
    tokens = TokenMap(kinds, torch.zeros(kinds.shape, dtype=torch.int16), generated)
    masks = PromptMasks(tokens)
    return Pass(tokens, 3 + generated, 1, generated, True, 1, torch.device("cpu"), masks)


@pytest.mark.parametrize("case", cases("vcd"))
def test_vcd_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("vcd")
    name = case["name"]
    if name == "schedule":
        found = torch.tensor([factors(t) for t in inputs["schedule.steps"].tolist()])
        close(found[:, 0], expected["schedule.sqrt_alpha_bar"])
        close(found[:, 1], expected["schedule.sqrt_one_minus_alpha_bar"])
    elif name.startswith("noise"):
        found = add_noise(inputs["noise.image"], inputs["noise.noise"], case["step"])
        close(found, expected[f"{name}.image"])
    else:
        clean, other = inputs["contrast.logits"], inputs["contrast.logits_cd"]
        found = contrast(clean, other, *strengths(case)) / case.get("temperature", 1)
        close(found, expected[f"{name}.scores"])


@pytest.mark.parametrize("case", cases("icd"))
def test_icd_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("icd")
    alpha, beta = strengths(case)
    clean, other = inputs["contrast.logits"], inputs["contrast.logits_icd"]
    if case["name"].startswith("contrast"):
        close(contrast(clean, other, alpha, beta), expected[f"{case['name']}.scores"])
        return
    spec = ICD(alpha=alpha, beta=beta, noise=500, combine="sum")
    wanted = expected[f"{case['name']}.scores"]
    noisy = inputs["contrast.logits_vcd"]
    close(icd.both_contrasts(clean, other, noisy, spec), wanted)
    mean = ICD(alpha=alpha, beta=beta, noise=500, combine="mean")
    close(icd.both_contrasts(clean, other, noisy, mean), wanted / 2)


@pytest.mark.parametrize("case", cases("avisc", named("select")))
def test_avisc_finds_the_released_code_s_blind_tokens(case: dict[str, Any]) -> None:
    inputs, expected = vectors("avisc")
    rows = inputs[f"select.{case['model']}.last_row"]
    weights = rows[:, :, case["image_start"] : case["image_end_exclusive"]].mean(1)
    close(weights.sum(1) / weights.sum(), expected[f"{case['name']}.layer_share"])
    layers = torch.zeros(len(weights), dtype=torch.uint8)
    layers[avisc.largest_layers(weights, case["gamma"])] = 1
    assert layers.sum() == case["n_layers"]
    assert torch.equal(layers, expected[f"{case['name']}.layers"])
    blind = avisc.find_blind(weights, case["gamma"], case["lamb"])
    assert blind.sum() == case["n_blind"]
    assert torch.equal((~blind).to(torch.uint8), expected[f"{case['name']}.blanked"])


@pytest.mark.parametrize("case", cases("avisc", named("contrast")))
def test_avisc_s_contrast_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("avisc")
    clean, other = inputs["contrast.logits"], inputs["contrast.logits_blind"].clone()
    if at := case.get("nan_at"):
        other[:, at["step"], at["column"]] = torch.nan
    alpha, beta = strengths(case)
    found = avisc._combine(avisc.AvisC(alpha=alpha, beta=beta), clean, other, step(0))
    close(found, expected[f"{case['name']}.scores"])


@pytest.mark.parametrize("case", cases("avisc", named("blank")))
def test_avisc_blanks_what_the_released_code_does(case: dict[str, Any]) -> None:
    inputs, expected = vectors("avisc")
    embeds = inputs["blank.embeds"]
    blank = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    blank[:, inputs["blank.idx"] + case["image_start"]] = True
    found = avisc.blanked({"inputs_embeds": embeds}, blank, case["scheme"], 0)["inputs_embeds"]
    assert torch.equal(found, expected[f"{case['name']}.embeds"])


def test_avisc_finds_each_sample_s_own_blind_tokens() -> None:
    # The code takes one bound for a batch, and one list of indices (case batch2).
    inputs, expected = vectors("avisc")
    case = next(case for case in meta("avisc")["cases"] if case["name"] == "batch2")
    gamma, lam = case["gamma"], case["lamb"]
    weights = inputs["batch2.last_row"][..., :32].mean(2)
    mean = weights[avisc.largest_layers(weights.flatten(1), gamma)].mean(0)
    pooled = mean < mean.mean() + lam * mean.std()
    assert torch.equal(pooled.nonzero()[:, 1], expected["batch2.mask_idx"][0])
    own = torch.stack([~avisc.find_blind(row, gamma, lam) for row in weights.unbind(1)])
    assert not torch.equal(own, pooled)


@pytest.mark.parametrize("case", cases("avisc", named("m3id")))
def test_m3id_equals_the_code_beside_avisc(case: dict[str, Any]) -> None:
    inputs, expected = vectors("avisc")
    clean, text = inputs["contrast.logits"], inputs["contrast.logits_blind"]
    spec = M3ID(rate=case["lam"], beta=case["beta"])
    found = [
        m3id._combine(spec, clean[:, t : t + 1], text[:, t : t + 1], step(t)) for t in range(3)
    ]
    close(torch.cat(found, 1), expected[f"{case['name']}.scores"])


def exits(inputs: dict[str, Tensor], case: dict[str, Any], batch: int) -> tuple[Tensor, Tensor]:
    """The model's scores "B R V" and the candidates' "C B R V"."""
    layers = case.get("candidates") or [case["premature"]]
    found = torch.stack([inputs[f"logits.layer{c}"][:batch] for c in layers])
    return inputs[f"logits.layer{case['mature']}"][:batch], found


@pytest.mark.parametrize("case", cases("dola"))
def test_dola_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("dola")
    name = case["name"]
    if name == "exit":
        for layer in case["layers"]:
            found = inputs["exit.hidden"][layer] @ inputs["exit.lm_head"].T
            close(found, expected[f"exit.layer{layer}.logits"])
        return
    mature, early = exits(inputs, case, case.get("batch", 1))
    chosen = dola.choose_exits(mature, early, "mixture", per_sample=False)
    other = early.gather(0, chosen[None, ..., None].expand(1, *mature.shape))[0]
    rho = case["relative_top"]
    if name.startswith("score"):
        answer = inputs["score.answer"]
        found = dola.score_answer(mature, other, answer, rho, case["post_softmax"])
        torch.testing.assert_close(found, expected[f"{name}.sum"], atol=1e-3, rtol=1e-6)
        return
    if f"{name}.layers" in expected:
        layers = torch.tensor(case["candidates"])[chosen[0]]
        assert torch.equal(layers, expected[f"{name}.layers"])
    found = dola.difference(mature, other, rho)
    close(found, expected[f"{name}.scores"])
    assert torch.equal(found.argmax(-1), expected[f"{name}.tokens"])


def test_dola_s_paper_chooses_other_layers_than_its_code() -> None:
    inputs, expected = vectors("dola")
    case = {"candidates": [0, 2, 4, 6, 8], "mature": 12}
    mature, early = exits(inputs, case, 1)
    chosen = dola.choose_exits(mature, early, "jsd")
    layers = torch.tensor(case["candidates"])[chosen[0]]
    assert torch.equal(layers, expected["layers_true_jsd"])
    assert not torch.equal(layers, expected["dynamic.single.top0.1.layers"])
    both, early = exits(inputs, case, 2)
    apart = dola.choose_exits(both, early, "mixture")
    assert torch.equal(apart[:1], dola.choose_exits(mature, early[:, :1], "mixture"))
    assert not torch.equal(apart[0], apart[1])
