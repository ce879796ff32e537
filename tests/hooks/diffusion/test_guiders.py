"""Guiders of modular pipelines: the branches they name, and whether they pass on what is added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from tiny_pipelines import FAMILIES, quiet, tiny
from torch import Tensor

import regaze

PAG = regaze.PAG(scale=3.0)


def modular(guider: Any) -> Any:
    stock = quiet(FAMILIES["sdxl"].build())
    pipe = StableDiffusionXLDenoiseStep().init_pipeline()
    pipe.update_components(unet=stock.unet, scheduler=stock.scheduler, guider=guider)
    return pipe


def steps(pipe: Any, count: int = 3) -> Tensor:
    """The latents that a modular pipeline's denoising blocks make of a stock pipeline's call."""
    call = FAMILIES["sdxl"].call(1, True)
    pipe.scheduler.set_timesteps(count)
    ids = torch.tensor([[64.0, 48.0, 0.0, 0.0, 64.0, 48.0]])
    state = BlockState(
        **call, timesteps=pipe.scheduler.timesteps, add_time_ids=ids, negative_add_time_ids=ids,
        timestep_cond=None, cross_attention_kwargs=None, ip_adapter_embeds=None,
        negative_ip_adapter_embeds=None, generator=None, eta=0.0,
    )  # fmt: skip
    for i, t in enumerate(state.timesteps):
        for block in pipe.blocks.sub_blocks.values():
            pipe, state = block(pipe, state, i=i, t=t)
    latents: Tensor = state.latents
    return latents


def test_a_modular_pipeline_tells_no_words() -> None:
    pipe = modular(ClassifierFreeGuidance(guidance_scale=5.0))
    for spec, why in (
        (regaze.StructuredDiffusion(phrases=["a red cat"]), "modular pipelines don't"),
        (regaze.Reweight({"cat": 2.0}), "which columns hold 'cat' isn't known"),
        (regaze.NAG(negative="a cat"), "a modular pipeline doesn't tell its own; give embeddings"),
        (regaze.Regions([((0, 0, 1, 1), "a cat")]), "a modular pipeline doesn't tell its own"),
    ):
        with regaze.attach(pipe.unet, spec), pytest.raises(ValueError, match=why):
            steps(pipe)


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_guider_names_the_branches_of_a_modular_pipeline(scale: float) -> None:
    stock, kind = tiny("sdxl"), FAMILIES["sdxl"]
    pipe = modular(ClassifierFreeGuidance(guidance_scale=scale))
    for spec in (PAG, regaze.PAG(scale=3.0, stop=0.5)):
        with regaze.attach(pipe.unet, spec) as attached:
            got = steps(pipe)
        assert attached.report().fired
        with regaze.attach(stock, spec):
            want = kind.run(stock, 1, scale > 1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert (got - kind.run(stock, 1, scale > 1)).abs().max() > 1e-2
    with pytest.raises(TypeError, match="is a modular pipeline.*its U-Net or transformer alone"):
        regaze.attach(pipe, PAG)


def test_another_guiders_branches_are_refused() -> None:
    skip = LayerSkipConfig(
        [0], fqn="mid_block.attentions.0.transformer_blocks", skip_attention=False,
        skip_attention_scores=True, skip_ff=False,
    )  # fmt: skip
    window = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    pipe = modular(PerturbedAttentionGuidance(perturbed_guidance_config=skip, **window))
    with regaze.attach(pipe.unet, PAG), pytest.raises(ValueError, match="pred_cond_skip.*neither"):
        steps(pipe)


def test_a_guider_of_another_kind_may_pass_on_what_is_added() -> None:
    def added(guider: Any, scale: float) -> Tensor:
        """What one step's latents move by; they are linear in the prediction."""
        pipe = modular(guider)
        plain = steps(pipe, 1)
        with regaze.attach(pipe.unet, regaze.PAG(scale=scale)) as attached:
            moved = steps(pipe, 1) - plain
        assert attached.report().fired
        return moved

    want = added(ClassifierFreeGuidance(guidance_scale=5.0), 2.0)
    for guider in (AdaptiveProjectedGuidance(), AdaptiveProjectedGuidance(guidance_scale=1.0)):
        torch.testing.assert_close(added(guider, 2.0), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "guider",
    [
        ClassifierFreeZeroStarGuidance(),
        TangentialClassifierFreeGuidance(),
        ClassifierFreeGuidance(guidance_rescale=0.7),
    ],
    ids=["zero star", "tangential", "rescaled"],
)
def test_a_guider_that_scales_or_drops_what_is_added_raises(guider: Any) -> None:
    pipe = modular(guider)
    with (
        regaze.attach(pipe.unet, PAG),
        pytest.raises(ValueError, match="doesn't pass on what guidance adds to its branches"),
    ):
        steps(pipe)
