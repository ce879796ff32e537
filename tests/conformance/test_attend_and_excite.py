"""Attend-and-Excite against numbers that the paper's own code and diffusers produced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_pipelines import quiet
from torch import Tensor
from vectors import cases, meta, named, vectors

import regaze
from regaze.interventions.diffusion.concept_maps import (
    Columns,
    concept_maps,
    excite_loss,
    smoothing_kernel,
)


@pytest.mark.parametrize("case", cases("attend_and_excite", named("kernel")))
def test_the_smoothing_kernel_is_the_codes(case: dict[str, Any]) -> None:
    _, expected = vectors("attend_and_excite")
    kernel = smoothing_kernel(case["sigma"], case["kernel_size"])
    torch.testing.assert_close(kernel[None, None], expected[case["name"]], atol=1e-7, rtol=1e-6)
    if (name := f"{case['name']}.smoothed") in expected:
        image = vectors("attend_and_excite")[0]["kernel.image"]
        got = torch.nn.functional.conv2d(image, kernel[None, None])
        torch.testing.assert_close(got, expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", cases("attend_and_excite", named("case")))
def test_peaks_loss_and_gradient_are_the_codes(case: dict[str, Any]) -> None:
    inputs, expected = vectors("attend_and_excite")
    name, side = case["name"], case["resolution"]
    stored = [inputs[k] for k in sorted(inputs) if k.startswith(f"{name}.")]
    heads = torch.cat(stored).requires_grad_()
    stop = case["end_index"] or heads.shape[-1] - 1
    columns = Columns(tuple(range(1, stop)), tuple((i - 1,) for i in case["token_indices"]))
    maps = heads.mean(0).reshape(1, side, side, -1)
    found = concept_maps(maps, columns, 100.0, case["sigma"] if case["smooth"] else 0.0)
    loss = excite_loss(found)
    peaks = found.flatten(1).amax(1)
    torch.testing.assert_close(peaks, expected[f"{name}.max_per_token"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss[None], expected[f"{name}.loss"], atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, heads)
    want = expected[f"{name}.grad"].expand_as(gradient)
    torch.testing.assert_close(gradient, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", cases("peer_attend_and_excite", named("case")))
def test_latents_after_every_step_equal_those_of_diffusers(case: dict[str, Any]) -> None:
    (inputs, expected), about = vectors("peer_attend_and_excite"), meta("peer_attend_and_excite")
    unet: Any = UNet2DConditionModel(**about["unet_config"])
    unet.load_state_dict({k[5:]: v for k, v in inputs.items() if k.startswith("unet.")})
    settings = {k: v for k, v in about["scheduler"].items() if k != "class"}
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    pipe = quiet(
        StableDiffusionPipeline(
            unet=unet.eval(), scheduler=DDIMScheduler(**settings), requires_safety_checker=False,
            **parts,
        )
    )  # fmt: skip
    steps = case["num_inference_steps"]
    spec = regaze.AttendAndExcite(
        tokens=case["token_indices"], step_size=case["scale_factor"],
        stop=case["max_iter_to_alter"] / steps,
        refine={int(step) / steps: peak for step, peak in case["thresholds"].items()},
        layers=None if case["attn_res"] == [8, 8] else ("down_blocks.0", "up_blocks.1"),
    )  # fmt: skip
    latents: list[Tensor] = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].clone())
        return values

    with regaze.attach(pipe, spec) as run:
        pipe(
            prompt_embeds=inputs["prompt_embeds"], latents=inputs["latents"],
            negative_prompt_embeds=inputs["negative_prompt_embeds"], num_inference_steps=steps,
            guidance_scale=case["guidance_scale"], output_type="latent", callback_on_step_end=note,
        )  # fmt: skip
    want = expected[f"{case['name']}.latents_per_step"]
    assert (torch.stack(latents) - want).abs().max() < 2e-3
    assert (latents[-1] - expected[f"{case['name']}.latents"]).abs().max() < 2e-3
    (report,) = run.report().interventions
    assert report.fired
