"""Loops and calls of one's own on a tiny U-Net, where no pipeline runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tiny_pipelines import COLUMNS, HEIGHT, TEXT, WIDTH, ddim, noise
from torch import Tensor

import regaze

PAG = regaze.PAG(scale=3.0)
TEXTS = torch.cat([noise(2, TEXT, WIDTH, seed=2), noise(2, TEXT, WIDTH, seed=1)])
ROWS = noise(2, 4, HEIGHT, COLUMNS)


@torch.no_grad()
def loop(
    unet: Any,
    text: Tensor = TEXTS,
    sampler: Any = None,
    scale: float = 5.0,
    cond_first: bool = False,
) -> Tensor:
    """A denoising loop of one's own, [unconditional, conditional] or the other way round."""
    sampler, z = copy.deepcopy(sampler or ddim()), noise(2, 4, HEIGHT, COLUMNS)
    sampler.set_timesteps(3)
    for t in sampler.timesteps:
        noised = sampler.scale_model_input(torch.cat([z] * 2), t)
        u, c = unet(noised, t, encoder_hidden_states=text).sample.chunk(2)[:: 1 - 2 * cond_first]
        z = sampler.step(u + scale * (c - u), t, z).prev_sample
    return z


def predict(unet: Any, latents: Tensor, text: Tensor) -> Any:
    """The prediction of one call by hand."""
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text).sample


def guided(target: Any, run: Any, **told: Any) -> Tensor:
    """The latents of a run with PAG attached to something, which fired."""
    with regaze.attach(target, PAG, **told) as attached:
        latents: Tensor = run()
    assert attached.report().fired
    return latents
