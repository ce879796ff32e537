"""TPG against numbers that its released code produced, with that code's permutations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from vectors import cases, meta, named, vectors

import regaze
from regaze.hooks.diffusion.host import host_of
from regaze.interventions import TPG

NAMES = {"d": "down_blocks.1.attentions.0", "m": "mid_block.attentions.0"}


@pytest.mark.parametrize("case", cases("tpg", named("block")))
def test_a_block_of_shuffled_tokens_is_the_shuffled_block(case: dict[str, Any]) -> None:
    inputs, expected = vectors("tpg")
    size, name = meta("tpg")["modules"]["block"], case["name"]
    make: Any = BasicTransformerBlock
    block = make(size["width"], size["heads"], size["head_dim"], cross_attention_dim=10).eval()
    stored = {k.removeprefix("block."): v for k, v in inputs.items() if k.startswith("block.")}
    block.load_state_dict({k: v for k, v in stored.items() if k.endswith((".weight", ".bias"))})
    with torch.no_grad():
        got = block(
            inputs[f"{name}.hidden_states"],
            encoder_hidden_states=inputs[f"{name}.encoder_hidden_states"],
        )
    got[-case["batch"] :] = got[-case["batch"] :][:, inputs[f"{name}.permutation"]]
    torch.testing.assert_close(got, expected[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("fork", [True, False], ids=["fork", "whole"])
@pytest.mark.parametrize("case", cases("tpg", named("unet")))
def test_the_perturbed_prediction_equals_the_released_code(
    case: dict[str, Any], fork: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inputs, expected), name = vectors("tpg"), case["name"]
    unet: Any = UNet2DConditionModel(**meta("tpg")["unet_config"])
    unet.load_state_dict(
        {k.removeprefix("unet."): v for k, v in inputs.items() if k.startswith("unet.")}
    )
    unet.eval()
    composed: dict[str, Tensor] = {}
    for layer in case["layers"]:
        order, before = inputs[f"{name}.perm.{layer}"], composed.get(NAMES[layer[0]])
        composed[NAMES[layer[0]]] = order if before is None else before[order]
    monkeypatch.setattr(TPG, "permutation", lambda spec, path, t, tokens: composed[path])
    layers = tuple(
        f"{NAMES[layer[0]]}.transformer_blocks.{layer[1:]}.attn1" for layer in case["layers"]
    )
    spec = TPG(scale=1.0, layers=layers)
    text = inputs["unet_cond"]
    call = (inputs["unet_latents"], case["timestep"], text)
    with torch.no_grad():
        plain = unet(*call)[0]
        with regaze.attach(unet, spec, cond_rows=slice(None), fork=fork) as run:
            perturbed = 2 * plain - unet(*call)[0]
    assert run.report().fired
    torch.testing.assert_close(perturbed, expected[name][-len(plain) :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", cases("tpg", named("guidance")))
def test_the_combination_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("tpg")
    uncond, cond, perturbed = (
        inputs[f"guidance.{name}"] for name in ("uncond", "cond", "perturbed")
    )
    unet: Any = UNet2DConditionModel(**meta("tpg")["unet_config"])
    (branch,) = TPG(scale=case["tpg_scale"]).bind(host_of(unet)).branches(_Pass())  # type: ignore[arg-type]
    delta = branch.combine(cond, perturbed, None) - cond  # type: ignore[arg-type]
    torch.testing.assert_close(cond + delta, expected["guidance.nocfg"], atol=2e-5, rtol=0)
    guided = uncond + delta + case["guidance_scale"] * (cond - uncond)
    torch.testing.assert_close(guided, expected["guidance.cfg"], atol=2e-5, rtol=0)


class _Pass:
    class rows:
        cond = None
