"""Paints clips: all frames as one batch, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image


class HeldBackError(Exception):
    """The pipeline's safety checker held a frame back."""


@torch.no_grad()
def paint_clip(
    pipeline: Any, normals: Sequence[Image.Image], prompt: str, seed: int, **arguments: Any
) -> list[Image.Image]:
    """All frames of a clip as one batch, from the same noise.

    Args:
        pipeline: A ControlNet pipeline.
        normals: A normal map per frame.
        prompt: The prompt of all frames.
        seed: Seed of the noise, which is drawn on the CPU.
        arguments: Further ones of the pipeline's call.

    Returns:
        RGB, as many as ``normals``.

    Raises:
        HeldBackError: The pipeline's safety checker held a frame back.
    """
    size = [side // pipeline.vae_scale_factor for side in reversed(normals[0].size)]
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, pipeline.unet.config.in_channels, *size)
    noise = torch.randn(shape, generator=generator, dtype=pipeline.unet.dtype)
    output = pipeline(
        prompt=[prompt] * len(normals),
        image=list(normals),
        latents=noise.to(pipeline.device).expand(len(normals), -1, -1, -1),
        **arguments,
    )
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        raise HeldBackError(HeldBackError.__doc__)
    return [frame.convert("RGB") for frame in output.images]
