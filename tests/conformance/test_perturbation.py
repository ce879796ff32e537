"""PAG, SoftPAG and SEG against numbers that the papers' own code and diffusers produced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0
from tiny_pipelines import ddim, quiet
from torch import Tensor, nn
from vectors import Tensors, cases, meta, named, vectors

import regaze
from regaze.hooks.diffusion import Host, Layout, Site
from regaze.hooks.diffusion.kernel import editing
from regaze.hooks.diffusion.perturb import blur_queries
from regaze.interventions.diffusion.guided import Guided


def _linear(case: Mapping[str, Any]) -> bool:
    """Interpolations that aren't linear need the map; they are no part of SoftPAG here."""
    return case["name"].startswith("module") and "interpolation" not in case


def weights(inputs: Tensors, prefix: str) -> Tensors:
    """A module's parameters among the stored tensors: those with a weight's or bias's name."""
    found = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    return {k: v for k, v in found.items() if k.endswith((".weight", ".bias"))}


def perturbed(module: nn.Module, spec: Guided, site: Site, layout: Layout, **call: Tensor) -> Any:
    """An attention module's output in the branch that a spec perturbs."""
    holder = nn.ModuleDict({"attn": module})
    guidance = spec.bind(Host("SD3Transformer2DModel", (site,)))
    with torch.no_grad(), editing(holder, guidance.sites, layout, guidance.works[0].attend):
        return module(**call)


@pytest.mark.parametrize("case", cases("headhunter", _linear))
def test_soft_pag_equals_the_released_code(case: dict[str, Any]) -> None:
    (inputs, expected), about = vectors("headhunter"), meta("headhunter")
    name = case["name"].partition(".")[0]
    size = about["modules"][name]
    make: Any = Attention
    module = make(
        query_dim=size["width"], added_kv_proj_dim=size["width"], dim_head=size["head_dim"],
        heads=size["heads"], out_dim=size["width"], context_pre_only=False, bias=True,
        qk_norm=size["qk_norm"], processor=JointAttnProcessor2_0(),
    ).eval()  # fmt: skip
    # The released processor has the text stream's norms switched off.
    module.norm_added_q = module.norm_added_k = None
    module.load_state_dict(weights(inputs, f"{name}."))
    heads = {"L0": case.get("heads") or []}
    multiplier = case.get("logit_multiplier", 1e5 if case["target"] == "argmax one-hot" else None)
    if multiplier is None:
        spec = regaze.SoftPAG(u=case["u"] or 0.0, target=case["target"] or "identity", heads=heads)
    else:
        tau = 1 / multiplier if multiplier else 1e9
        spec = regaze.SoftPAG(u=case.get("u", 1.0), target="temperature", tau=tau, heads=heads)
    site = Site("attn", "joint", "transformer_blocks.0", 0, size["heads"], "image-text")
    image, text = perturbed(
        module, spec, site, Layout(None, size["n_txt"], False),
        hidden_states=inputs[f"{name}.hidden_states"],
        encoder_hidden_states=inputs[f"{name}.encoder_hidden_states"],
    )  # fmt: skip
    for stream, got in (("image", image), ("text", text)):
        want = expected[f"{case['name']}.{stream}"]
        # With norms the numbers are larger, and rounding with them, unperturbed or not.
        torch.testing.assert_close(got, want, atol=2e-5 * max(1.0, want.abs().max().item()), rtol=0)


@pytest.mark.parametrize("case", cases("seg", named("blur")))
def test_the_blur_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("seg")
    image = inputs[f"{case['name']}.input"]
    queries = image.flatten(2).transpose(1, 2)[:, None]
    blurred = blur_queries(queries, tuple(image.shape[2:]), case["sigma"])
    got = blurred[:, 0].transpose(1, 2).reshape(image.shape)
    torch.testing.assert_close(got, expected[f"{case['name']}.output"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", cases("seg", named("module")))
def test_seg_equals_the_released_code(case: dict[str, Any]) -> None:
    (inputs, expected), about = vectors("seg"), meta("seg")
    name, branches, _ = case["name"].split(".")
    size = about["modules"][name]
    parameters = weights(inputs, f"{name}.")
    make: Any = Attention
    module = make(
        query_dim=size["width"], dim_head=size["head_dim"], heads=size["heads"],
        bias="to_q.bias" in parameters, processor=AttnProcessor2_0(),
    ).eval()  # fmt: skip
    module.load_state_dict(parameters)
    hidden = inputs[f"{name}.{branches}.hidden_states"][-case["batch"] :]
    site = Site("attn", "self", "mid_block", 0, size["heads"], "image")
    got = perturbed(
        module, regaze.SEG(sigma=case["sigma"], layers=(0,)), site,
        Layout((size["side"], size["side"]), 0, True), hidden_states=hidden,
    )  # fmt: skip
    want = expected[case["name"]][-case["batch"] :]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", cases("peer_pag", named("case")))
def test_a_guided_stock_pipeline_equals_diffusers_pag_pipeline(case: dict[str, Any]) -> None:
    (inputs, expected), about = vectors("peer_pag"), meta("peer_pag")
    unet: Any = UNet2DConditionModel(**about["unet_config"])
    unet.eval()
    unet.load_state_dict(
        {k.removeprefix("unet."): v for k, v in inputs.items() if k.startswith("unet.")}
    )
    pipe = quiet(StableDiffusionPipeline(
        None, None, None, unet, ddim(), None, None, requires_safety_checker=False
    ))  # fmt: skip
    steps: list[Tensor] = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(values["latents"])
        return {}

    spec = regaze.PAG(
        scale=case["pag_scale"], adaptive=case["pag_adaptive_scale"],
        layers=tuple(case["pag_applied_layers"]),
    )  # fmt: skip
    with regaze.attach(pipe, spec) as run:
        pipe(
            prompt_embeds=inputs["prompt_embeds"],
            negative_prompt_embeds=inputs["negative_prompt_embeds"],
            latents=inputs["latents"], guidance_scale=case["guidance_scale"],
            num_inference_steps=case["num_inference_steps"], eta=case["eta"],
            output_type="latent", callback_on_step_end=note,
        )  # fmt: skip
    want = expected[f"{case['name']}.latents_per_step"]
    torch.testing.assert_close(torch.stack(steps), want, atol=1e-4, rtol=0)
    assert run.report().fired
