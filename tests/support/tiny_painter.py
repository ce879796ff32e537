"""A text-to-image pipeline with random weights that knows the painting world's words."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from regaze.evals.pictures import pipelines
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.sandbox.painting import build
from regaze.hooks import attach

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0}
"""Arguments for a picture in a blink."""


def save(folder: Path) -> None:
    """Build it and store it as `regaze.evals.pictures.pipelines.load` reads it."""
    torch.manual_seed(0)
    tokenizer = build.build_tokenizer()
    encoders = build.build_text_encoders("unet", len(tokenizer))
    denoiser: Any = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=build.TEXT_WIDTHS["unet"][0],
    )
    autoencoder = build.build_autoencoder()
    pipeline: Any = build.build_pipeline("unet", autoencoder, tokenizer, encoders, denoiser)
    pipeline.save_pretrained(folder)


@functools.cache
def folder() -> Path:
    """The folder it is stored in, for this process."""
    holder = tempfile.TemporaryDirectory()
    _HOLDERS.append(holder)
    save(Path(holder.name))
    return Path(holder.name)


def fresh() -> LoadedPipeline:
    """A copy that nobody else holds."""
    return pipelines.load(str(folder()))


@functools.cache
def shared() -> LoadedPipeline:
    """A copy that whoever uses it leaves as it was."""
    return fresh()


def paint(prompt: Any, *specs: Any, **call: Any) -> Tensor:
    """The latents that the shared copy makes of one noise under interventions.

    Args:
        prompt: A prompt, or several.
        specs: The interventions.
        call: Arguments of the pipeline's call.
    """
    pipe: Any = shared().pipeline
    generator = torch.Generator().manual_seed(0)
    with attach(pipe, *specs):
        latents = pipe(prompt, generator=generator, output_type="latent", **call)[0]
    assert isinstance(latents, Tensor)
    return latents


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []
