"""Inversion of real pictures, by the built-in painter."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImagePipeline,
)
from PIL import Image
from tiny_pipelines import tiny, vae
from torch import Tensor

import regaze
from regaze.evals.pictures import pipelines
from regaze.evals.sandbox.painting.prompts import Kind, Wanted
from regaze.evals.sandbox.painting.scenes import right_picture
from regaze.interventions.diffusion.edit_source import recorded
from regaze.interventions.diffusion.inversion import encoded, invert

WANTED = Wanted((Kind("red", "circle"), Kind("blue", "square")))
CALL: dict[str, Any] = {"max_sequence_length": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@functools.cache
def painter() -> Any:
    return pipelines.load("painter-mmdit").pipeline


def picture() -> Image.Image:
    return right_picture(WANTED, 3).image


def velocity(pipe: Any, latents: Tensor, sigma: float) -> Tensor:
    text, _, pooled, _ = pipe.encode_prompt(
        WANTED.prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=16
    )
    with torch.no_grad():
        found = pipe.transformer(
            hidden_states=latents, timestep=torch.tensor([1000 * sigma]), return_dict=False,
            encoder_hidden_states=text, pooled_projections=pooled,
        )  # fmt: skip
    out: Tensor = found[0]
    return out


def test_it_is_uni_inv_written_out() -> None:
    pipe, steps = painter(), 3
    stock = pipe.scheduler
    source = invert(pipe, WANTED.prompt, picture(), num_inference_steps=steps, **CALL)
    assert pipe.scheduler is stock
    stock.set_timesteps(steps)
    assert torch.equal(source.timesteps, stock.timesteps)
    levels = [float(s) for s in stock.sigmas.flip(0)]
    z = encoded(pipe, picture())
    v, want = velocity(pipe, z, 0.0), []
    for low, high in zip(levels, levels[1:], strict=False):
        v = velocity(pipe, z + (high - low) * v, high)
        z = z + (high - low) * v
        want.append(z)
    torch.testing.assert_close(source.latents, torch.stack(want[::-1]), atol=1e-4, rtol=1e-4)


def test_sampling_from_the_noise_gives_the_picture_back() -> None:
    pipe = painter()
    source = invert(pipe, WANTED.prompt, picture(), num_inference_steps=12, **CALL)
    call = {"num_inference_steps": 12, "guidance_scale": 1.0, **CALL}
    (back,) = pipe(WANTED.prompt, latents=source.latents[0], **call).images
    far = np.abs(np.asarray(back, float) - np.asarray(picture(), float)).mean()
    assert far < 2  # The autoencoder alone: 0.5.
    # As a source, the picture is put back on its way before each step.
    edit = "a white circle and a blue square"
    with regaze.attach(pipe, regaze.ConsistEdit(source=source, mask="all", strength=0.1)):
        again, _ = pipe([WANTED.prompt, edit], **call).images
    near = np.abs(np.asarray(again, float) - np.asarray(picture(), float)).mean()
    assert near < 1


def test_packed_latents_are_what_the_pipeline_unpacks() -> None:
    flux = FluxPipeline(None, vae(), None, None, None, None, tiny("flux").transformer)
    torch.manual_seed(0)
    qwen_vae: Any = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1] * 4, latents_std=[0.5] * 4,
    )  # fmt: skip
    qwen = QwenImagePipeline(None, qwen_vae.eval(), None, None, tiny("qwen").transformer)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8))
    for pipe in (flux, qwen):
        pixels = pipe.image_processor.preprocess(image)
        got = pipe._unpack_latents(encoded(pipe, image), 32, 64, pipe.vae_scale_factor)
        with torch.no_grad():
            if pipe is qwen:
                z = pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()
                want = (z - 0.1) / 0.5
            else:
                z = pipe.vae.encode(pixels).latent_dist.mode()
                want = (z - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor
        torch.testing.assert_close(got, want)


def test_words_are_read_on_the_way() -> None:
    """The red circle's tokens get more of its words than the rest does."""
    pipe = painter()
    source = invert(
        pipe, WANTED.prompt, picture(), words="red circle", num_inference_steps=6, **CALL
    )
    pixels = np.asarray(picture(), float)
    red = torch.from_numpy((pixels[..., 0] - pixels[..., 2]) > 50).float()
    inside = torch.nn.functional.avg_pool2d(red[None, None], 4).flatten() > 0.5
    assert source.shares is not None
    (found,) = source.shares
    assert found[inside].mean() > 2 * found[~inside].mean()
    assert source.edited(0.5)[0][inside].float().mean() > 0.7
    bare = invert(pipe, WANTED.prompt, picture(), num_inference_steps=1, **CALL)
    with pytest.raises(ValueError, match="wasn't read"):
        bare.edited()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = painter()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "give the picture, or its latents"),
        ({"image": picture().resize((30, 30))}, "resize it to 28 x 28"),
        ({"image": [picture()] * 2}, "1 prompts for 2 pictures"),
        ({"image": picture(), "words": "hat"}, "'hat' isn't in the source prompt"),
    ]
    for given, said in cases:
        with pytest.raises(ValueError, match=said):
            invert(pipe, WANTED.prompt, num_inference_steps=1, **given, **CALL)
    config = pipe.scheduler.config
    for scheduler, said in (
        (EulerDiscreteScheduler(), "isn't the Euler scheduler of a flow"),
        (
            FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=True),
            "adds noise",
        ),
    ):
        monkeypatch.setattr(pipe, "scheduler", scheduler)
        with pytest.raises(ValueError, match=said):
            invert(pipe, WANTED.prompt, picture(), num_inference_steps=1, **CALL)
        assert pipe.scheduler is scheduler
    with pytest.raises(ValueError, match="give latents"):
        invert(tiny("wan"), "a", picture())
    with pytest.raises(TypeError, match="no diffusers pipeline"), recorded(torch.nn.Linear(1, 1)):
        pass
    with pytest.raises(ValueError, match="nothing was recorded"), recorded(pipe) as run:
        _ = run.source
