"""PAG, SoftPAG and SEG against numbers that the papers' own code and diffusers produced."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from tiny_pipelines import ddim, quiet
from torch import Tensor, nn
from vectors import Tensors, cases, meta, named, vectors

import regaze
from regaze.hooks.diffusion import Host, Layout, Site
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.families import FAMILIES
from regaze.hooks.diffusion.kernel import editing
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.perturb import blur_queries
from regaze.hooks.diffusion.rows import Rows
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


@pytest.mark.parametrize("case", cases("headhunter", named("raw")))
def test_soft_pag_of_single_heads(case: dict[str, Any]) -> None:
    inputs, expected = vectors("headhunter")
    query, key, value = (inputs[f"raw.{x}"] for x in "qkv")
    spec = regaze.SoftPAG(u=case["u"], target=case["target"], heads={"L0": case["heads"]})
    site = Site("attn", "joint", "transformer_blocks.0", 0, query.shape[1], "image-text")
    guidance = spec.bind(Host("SD3Transformer2DModel", (site,)))
    call = Call(
        site, Layout(None, meta("headhunter")["modules"]["module0"]["n_txt"], False), query, key,
        value, None, query.shape[-1] ** -0.5, torch.nn.functional.scaled_dot_product_attention,
    )  # fmt: skip
    got = guidance.works[0].attend(call)
    torch.testing.assert_close(got, expected[case["name"]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("headhunter", named("guidance")))
def test_guidances_add_up_as_in_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("headhunter")
    cond, uncond, *skipped = (inputs[f"guidance.{n}"] for n in ("cond", "uncond", "pert", "pert2"))
    scales = (case["perturb_scale"], case["second_perturb_scale"])
    delta = sum(difference(s, cond, p) for s, p in zip(scales, skipped, strict=True) if s)
    g = case["guidance_scale"]
    got = (uncond + g * (cond - uncond) if g > 1 else cond) + delta
    torch.testing.assert_close(got, expected[case["name"]], atol=1e-5, rtol=0)


def difference(scale: float, cond: Tensor, perturbed: Tensor) -> Tensor:
    """A guidance's addition to the conditional prediction."""
    site = Site("attn", "joint", "transformer_blocks.0", 0, 2, "image-text")
    spec = regaze.PAG(scale=scale, layers=(0,))
    work = spec.bind(Host("SD3Transformer2DModel", (site,)))
    rows = Rows(2, slice(1, 2), slice(0, 1))
    running: Any = SimpleNamespace(step=(0, 1), pipeline=None, run=0)
    family = FAMILIES["SD3Transformer2DModel"]
    pass_ = Pass(None, family, {}, rows, Layout(None, 0, False), running)
    (branch,) = work.branches(pass_)
    found: Tensor = branch.combine(cond, perturbed, pass_) - cond
    return found


@pytest.mark.parametrize("case", cases("seg", named("guidance")))
def test_segs_guidance_equals_the_released_code(case: dict[str, Any]) -> None:
    inputs, expected = vectors("seg")
    cond, uncond, skipped = (inputs[f"guidance.{n}"] for n in ("cond", "uncond", "pert"))
    alone = cond + difference(case["seg_scale"], cond, skipped)
    torch.testing.assert_close(alone, expected["guidance.nocfg"], atol=1e-5, rtol=0)
    both = uncond + case["guidance_scale"] * (cond - uncond) + (alone - cond)
    torch.testing.assert_close(both, expected["guidance.cfg"], atol=1e-5, rtol=0)
    rescaled = rescale_noise_cfg(both, cond, 0.7)
    torch.testing.assert_close(rescaled, expected["guidance.rescaled"], atol=1e-5, rtol=0)


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
    torch.testing.assert_close(steps[-1], expected[f"{case['name']}.latents"], atol=1e-4, rtol=0)
    assert run.report().fired
