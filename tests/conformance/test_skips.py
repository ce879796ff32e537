"""SLG and STG against diffusers' own and against numbers that the paper's code produced."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as SD3Pipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_ltx import (
    LTXAttention,
    LTXVideoAttnProcessor,
    LTXVideoTransformerBlock,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from tiny_pipelines import quiet
from torch import Tensor, nn
from vectors import cases, meta, named, vectors

import regaze
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import Host, Layout, Site
from regaze.hooks.diffusion.families import CHECKED, FAMILIES
from regaze.hooks.diffusion.fork import instead, skipping, watch
from regaze.hooks.diffusion.kernel import editing
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import Rows


@pytest.mark.parametrize("case", cases("peer_slg", named("case")))
def test_slg_equals_diffusers_sd3_pipeline(case: dict[str, Any]) -> None:
    (inputs, expected), about = vectors("peer_slg"), meta("peer_slg")
    denoiser: Any = SD3Transformer2DModel(**about["transformer_config"])
    names = {k.removeprefix("transformer."): v for k, v in inputs.items() if "transformer." in k}
    denoiser.eval().load_state_dict(names)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=about["scheduler"]["shift"])
    pipe = quiet(SD3Pipeline(denoiser, scheduler, *[None] * 7))
    steps: list[Tensor] = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(values["latents"])
        return {}

    spec = regaze.SLG(
        scale=case["skip_layer_guidance_scale"],
        layers=tuple(f"transformer_blocks.{n}.attn" for n in case["skip_guidance_layers"] or [1]),
        start=case["skip_layer_guidance_start"], stop=case["skip_layer_guidance_stop"],
    )  # fmt: skip
    # There it is silently ignored without classifier-free guidance; here it acts.
    if case["skip_guidance_layers"] is None or case["guidance_scale"] <= 1:
        spec = replace(spec, scale=0.0)
    call = {k: v for k, v in inputs.items() if k.endswith("prompt_embeds") or k == "latents"}
    size = 8 * inputs["latents"].shape[-1]
    with regaze.attach(pipe, spec) as run:
        pipe(
            **call, guidance_scale=case["guidance_scale"], height=size, width=size,
            num_inference_steps=case["num_inference_steps"], output_type="latent",
            callback_on_step_end=note,
        )  # fmt: skip
    want = expected[f"{case['name']}.latents_per_step"]
    torch.testing.assert_close(torch.stack(steps), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(steps[-1], expected[f"{case['name']}.latents"], atol=1e-4, rtol=0)
    (report,) = run.report().interventions
    assert report.steps == case["extra_denoiser_calls"]


def test_slg_combines_as_diffusers_guider_does() -> None:
    inputs, expected = vectors("slg")
    cond, uncond, skipped = (inputs[name] for name in ("cond", "uncond", "skip"))
    g, s = 7.5, 2.8
    work = regaze.SLG(scale=s, layers=(0,)).bind(Host("SD3Transformer2DModel", (SITE,)))
    (branch,) = work.branches(_pass(0, 1))
    delta = branch.combine(cond, skipped, _pass(0, 1)) - cond
    cfg = (uncond + delta) + g * ((cond + delta) - (uncond + delta))
    torch.testing.assert_close(cfg, expected["cfg_slg"], atol=1e-5, rtol=0)
    original = (cond + delta) + g * (cond - uncond)
    torch.testing.assert_close(original, expected["cfg_slg_original"], atol=1e-5, rtol=0)
    torch.testing.assert_close(cond + delta, expected["slg_only_original"], atol=1e-5, rtol=0)
    # The guider's s without guidance is ours plus one.
    alone = cond + (s - 1) / s * delta
    torch.testing.assert_close(alone, expected["slg_only"], atol=1e-5, rtol=0)
    # A guider that knows the plain prediction takes the deviation from it.
    rescaled = rescale_noise_cfg(cfg, cond, 0.7)
    torch.testing.assert_close(rescaled, expected["cfg_slg_rescaled"], atol=1e-5, rtol=0)
    off = replace(regaze.SLG(layers=(0,)), scale=0.0).bind(Host("SD3Transformer2DModel", (SITE,)))
    assert not off.acts(_pass(3, 28))
    torch.testing.assert_close(
        uncond + g * (cond - uncond), expected["cfg_only"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("schedule", meta("slg")["schedules"])
def test_slg_acts_in_the_steps_of_diffusers_pipeline(schedule: dict[str, Any]) -> None:
    steps = schedule["num_inference_steps"]
    spec = regaze.SLG(layers=(0,), start=schedule["start"], stop=schedule["stop"])
    work = spec.bind(Host("SD3Transformer2DModel", (SITE,)))
    acts = [i for i in range(steps) if work.acts(_pass(i, steps))]
    assert acts == schedule["pipeline_steps"]


SITE = Site("transformer_blocks.0.attn", "joint", "transformer_blocks.0", 0, 2, "image-text")


def _pass(step: int, steps: int) -> Pass:
    running: Any = SimpleNamespace(step=(step, steps), pipeline=None, run=0)
    rows = Rows(2, slice(1, 2), slice(0, 1))
    return Pass(None, FAMILIES["SD3Transformer2DModel"], {}, rows, Layout(None, 0, False), running)


def test_stg_combines_as_the_code_does() -> None:
    inputs, expected = vectors("stg")
    (case,) = (c for c in meta("stg")["cases"] if c["name"] == "guidance")
    cond, uncond, skipped = (inputs[f"guidance.{n}"] for n in ("cond", "uncond", "perturbed"))
    work = regaze.STG(scale=case["stg_scale"], layers=(0,)).bind(
        Host("SD3Transformer2DModel", (SITE,))
    )
    (branch,) = work.branches(_pass(0, 1))
    delta = branch.combine(cond, skipped, _pass(0, 1)) - cond
    cfg = (uncond + delta) + case["guidance_scale"] * (cond - uncond)
    torch.testing.assert_close(cfg, expected["guidance.cfg_stg"], atol=2e-5, rtol=0)
    torch.testing.assert_close(cond + delta, expected["guidance.hunyuan"], atol=2e-5, rtol=0)
    s, factor = case["stg_scale"], case["rescaling"]
    # The older tree's skipped + s (cond - skipped) is ours of s - 1.
    older = cond + (s - 1) * (cond - skipped)
    torch.testing.assert_close(older, expected["guidance.hunyuan_old"], atol=2e-5, rtol=0)
    # That of Wan leads on from what classifier-free guidance gives.
    plain = uncond + case["guidance_scale"] * (cond - uncond)
    wan = branch.combine(plain, skipped, _pass(0, 1))
    torch.testing.assert_close(wan, expected["guidance.wan"], atol=2e-5, rtol=0)
    rescaled = cfg * (factor * cond.std() / cfg.std() + 1 - factor)
    want = expected["guidance.cfg_stg_rescaled"]
    torch.testing.assert_close(rescaled, want, atol=2e-5, rtol=1e-5)


def load(module: Any, prefix: str) -> Any:
    inputs, _ = vectors("stg")
    found = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    module.load_state_dict({k: found[k] for k in module.state_dict() if k in found})
    return module.eval()


def skipped(block: nn.Module, model: str, call: dict[str, Any]) -> Any:
    """The output of a block that is left out."""

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer_blocks = nn.ModuleList([block])

    holder, calls = Denoiser(), Calls()
    CHECKED[holder] = FAMILIES[model]
    try:
        watch(calls, holder)
        with instead(holder, {"transformer_blocks.0": skipping(FAMILIES[model].returns)}):
            return block(**call)
    finally:
        calls.release()


def test_a_block_of_cogvideox_is_left_out() -> None:
    inputs, expected = vectors("stg")
    block = load(CogVideoXBlock(16, 2, 8, 6, attention_bias=True), "cog_block.")
    rotary = (inputs["cog.rotary_cos"], inputs["cog.rotary_sin"])
    call = {
        "hidden_states": inputs["cog.hidden_states"], "temb": inputs["cog.temb"],
        "encoder_hidden_states": inputs["cog.encoder_hidden_states"], "image_rotary_emb": rotary,
    }  # fmt: skip
    with torch.no_grad():
        plain = block(**call)
        got = skipped(block, "CogVideoXTransformer3DModel", call)
    for n, stream in enumerate(("video", "text")):
        want = expected[f"cog_block_skip.{stream}"]
        torch.testing.assert_close(plain[n][:4], want[:4], atol=2e-5, rtol=0)
        assert torch.equal(got[n][4:], want[4:])


def test_a_block_of_ltx_is_left_out() -> None:
    inputs, expected = vectors("stg")
    make: Any = LTXVideoTransformerBlock
    block = load(make(16, 2, 8, 16), "ltx_block.")
    call = {
        "hidden_states": inputs["ltx.hidden_states"], "temb": inputs["ltx.temb"],
        "encoder_hidden_states": inputs["ltx.encoder_hidden_states"],
        "image_rotary_emb": (inputs["ltx.rotary_cos"], inputs["ltx.rotary_sin"]),
    }  # fmt: skip
    with torch.no_grad():
        plain, got = block(**call), skipped(block, "LTXVideoTransformer3DModel", call)
    want = expected["ltx_block_skip.video"]
    torch.testing.assert_close(plain[:4], want[:4], atol=2e-5, rtol=0)
    assert torch.equal(got[4:], want[4:])


def perturbed(attn: nn.Module, model: str, site: Site, skip: str, n_text: int, **call: Any) -> Any:
    holder = nn.ModuleDict({"attn": attn})
    guidance = regaze.STG(layers=(0,), skip=skip).bind(Host(model, (site,)))
    layout = Layout(None, n_text, False)
    with torch.no_grad(), editing(holder, guidance.sites, layout, guidance.works[0].attend):
        return attn(**call)


def test_attention_of_ltx_is_skipped() -> None:
    inputs, expected = vectors("stg")
    make: Any = LTXAttention
    attn = load(
        make(query_dim=16, heads=2, kv_heads=2, dim_head=8, bias=True, out_bias=True,
             qk_norm="rms_norm_across_heads", processor=LTXVideoAttnProcessor()),
        "ltx_block.attn1.",
    )  # fmt: skip
    site = Site("attn", "self", "transformer_blocks.0", 0, 2, "image")
    rotary = (inputs["ltx.rotary_cos"], inputs["ltx.rotary_sin"])
    hidden = inputs["ltx.attn_hidden_states"][4:]
    got = perturbed(attn, "LTXVideoTransformer3DModel", site, "attention", 0,
                    hidden_states=hidden, image_rotary_emb=rotary)  # fmt: skip
    want = expected["ltx_attention_value.video"][4:]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_the_older_tree_of_ltx_skips_attention_alike() -> None:
    inputs, expected = vectors("stg")
    stored = {k[8:]: v for k, v in inputs.items() if k.startswith("ltx_own.")}
    names = {
        k.replace("q_norm", "norm_q").replace("k_norm", "norm_k"): v for k, v in stored.items()
    }
    make: Any = LTXAttention
    attn = make(query_dim=16, heads=2, kv_heads=2, dim_head=8, bias=True, out_bias=True,
                qk_norm="rms_norm_across_heads", processor=LTXVideoAttnProcessor())  # fmt: skip
    attn.eval().load_state_dict(names)
    site = Site("attn", "self", "transformer_blocks.0", 0, 2, "image")
    hidden = inputs["ltx.attn_hidden_states"][4:]
    got = perturbed(attn, "LTXVideoTransformer3DModel", site, "attention", 0, hidden_states=hidden)
    want = expected["ltx_own_attention.video"][4:]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    # What it calls residual returns the input, which isn't offered: the same attention without V.
    assert torch.equal(expected["ltx_own_residual.video"][4:], hidden)


def test_attention_of_hunyuan_video_is_skipped() -> None:
    inputs, expected = vectors("stg")
    make: Any = Attention
    attn = load(
        make(query_dim=16, added_kv_proj_dim=16, dim_head=8, heads=2, out_dim=16, bias=True,
             context_pre_only=False, qk_norm="rms_norm", eps=1e-6,
             processor=HunyuanVideoAttnProcessor2_0()),
        "hunyuan.",
    )  # fmt: skip
    site = Site("attn", "joint", "transformer_blocks.0", 0, 2, "image-text")
    rotary = (inputs["cog.rotary_cos"], inputs["cog.rotary_sin"])
    found = perturbed(
        attn, "HunyuanVideoTransformer3DModel", site, "diagonal", 4,
        hidden_states=inputs["hunyuan.hidden_states"], image_rotary_emb=rotary,
        encoder_hidden_states=inputs["hunyuan.encoder_hidden_states"],
    )  # fmt: skip
    for got, stream in zip(found, ("video", "text"), strict=True):
        want = expected[f"hunyuan_attention_diagonal.{stream}"]
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
