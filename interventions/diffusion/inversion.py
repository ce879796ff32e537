"""Real pictures as the end of a sampling: the noise, and every state between, that lead to them.

A flow model's sampling step is ``z_{i-1} = z_i + (s_{i-1} - s_i) v(z_i, s_i)``. To go back, z_i has
to be found that does this for a given z_{i-1}:

    z_i = z_{i-1} + (s_i - s_{i-1}) v(z_i, s_i)

a fixed point, of which Uni-Inv (UniEdit-Flow, arXiv 2504.13109, algorithm 1) makes one iteration,
begun with the velocity of the level before. It is what ConsistEdit's code inverts with
(zxYin/ConsistEdit_Code@0b73d6a, scheduler.py). More iterations don't converge at the lowest levels,
where the velocity changes as fast as the latents: our painter's pictures come back to 0.6 grey
levels after one, and to 9 after two or four.

The pipeline itself runs, with its own prompt, guidance and shift of the noise levels: only its
scheduler is another one meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.host import find_denoisers, inner
from regaze.interventions.diffusion.edit_source import Recording, Source, recorded

_PACKED = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")
_PLAIN = ("SD3Transformer2DModel",)


def invert(
    pipeline: Any,
    prompt: str | Sequence[str],
    image: Any = None,
    *,
    latents: Tensor | None = None,
    words: Any = (),
    **call: Any,
) -> Source:
    """The source of edits of real pictures.

    Args:
        pipeline: Pipeline of a flow model, with a `FlowMatchEulerDiscreteScheduler`; left as it
            was.
        prompt: The pictures' descriptions, one for each.
        image: The pictures, as the pipeline's image processor takes them: PIL pictures whose sides
            are multiples of what it needs.
        latents: Or what the pipeline would decode to them, in the form of its own ``latents``.
        words: The part that will be edited; see `recorded`.
        **call: Arguments of the pipeline's call: ``num_inference_steps``,
            ``max_sequence_length``, ... By default guidance is off, as in the code.

    Raises:
        ValueError: The scheduler isn't such a one, or adds noise; the pictures can't be encoded; or
            there is one prompt for another number of pictures.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if latents is None:
        if image is None:
            raise ValueError("invert: give the picture, or its latents")
        latents = encoded(pipeline, image)
    if len(latents) != len(prompts):
        raise ValueError(
            f"invert: there are {len(prompts)} prompts for {len(latents)} pictures; give one each"
        )
    stock = pipeline.scheduler
    scheduler = _inverse(stock)
    taken = inspect.signature(type(pipeline).__call__).parameters
    off = ("guidance_scale", "true_cfg_scale")
    settings: dict[str, Any] = {name: 1.0 for name in off if name in taken}
    settings |= {"output_type": "latent", **_size(pipeline, latents, taken), **call}
    pipeline.scheduler = scheduler
    try:
        with recorded(pipeline, words) as run, torch.no_grad():
            pipeline(prompt=prompts, latents=latents, **settings)
    finally:
        pipeline.scheduler = stock
    return _source(scheduler, run)


def _source(scheduler: Any, run: Recording) -> Source:
    states = torch.stack([state.cpu() for state in scheduler.states[::-1]])
    times = scheduler.levels.flip(0).float().cpu()
    return Source(states, times, run.source.shares, run.source.grid)


def encoded(pipeline: Any, image: Any) -> Tensor:
    """Latents that a pipeline would decode to pictures, in the form of its own ``latents``.

    Args:
        pipeline: One of SD3, FLUX or Qwen-Image.
        image: One or more pictures.

    Raises:
        ValueError: It is another pipeline, has no autoencoder, or the picture's sides don't fit.
    """
    denoisers = find_denoisers(pipeline) or {}
    model = type(inner(next(iter(denoisers.values())))).__name__ if denoisers else "nothing"
    vae = getattr(pipeline, "vae", None)
    if model not in (*_PLAIN, *_PACKED) or vae is None:
        raise ValueError(
            f"invert: how {type(pipeline).__name__} encodes pictures isn't known; give latents"
        )
    pixels = pipeline.image_processor.preprocess(image)
    rows, columns = pixels.shape[-2:]
    unit = 2 * int(pipeline.vae_scale_factor)
    if rows % unit or columns % unit:
        raise ValueError(
            f"invert: a picture of {columns} x {rows} pixels can't be cut into patches of {unit}; "
            f"resize it to {columns - columns % unit} x {rows - rows % unit}"
        )
    pixels = pixels.to(device=pipeline._execution_device, dtype=vae.dtype)
    with torch.no_grad():
        if model == "QwenImageTransformer2DModel":
            found = vae.encode(pixels[:, :, None]).latent_dist.mode()
            mean, std = (
                torch.tensor(getattr(vae.config, name), dtype=torch.float32, device="cpu")
                .view(1, -1, 1, 1, 1)
                .to(found)
                for name in ("latents_mean", "latents_std")
            )
            found = ((found - mean) / std)[:, :, 0]
        else:
            found = vae.encode(pixels).latent_dist.mode()
            found = (found - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    latents: Tensor = found.to(inner(next(iter(denoisers.values()))).dtype)
    if model in _PACKED:
        latents = pipeline._pack_latents(latents, *latents.shape)
    return latents


def _size(pipeline: Any, latents: Tensor, taken: Any) -> dict[str, int]:
    """Height and width of the pictures, where latents show them."""
    if latents.ndim != 4 or not {"height", "width"} <= set(taken):
        return {}
    scale = int(pipeline.vae_scale_factor)
    return {"height": scale * latents.shape[-2], "width": scale * latents.shape[-1]}


def _inverse(scheduler: Any) -> Any:
    """A scheduler that goes a flow's levels upwards.

    Raises:
        ValueError: The pipeline's scheduler isn't one of a flow, or adds noise.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"invert: {type(scheduler).__name__} isn't the Euler scheduler of a flow, whose steps "
            "are inverted; set pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(...)"
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            "invert: this scheduler adds noise at every step, so no step has an inverse"
        )

    class Inverse(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        """Levels upwards: each step corrects the guess of its level and guesses the next one."""

        timesteps: Any
        sigmas: Any

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            """Levels of a sampling, from the picture to the noise."""
            super().set_timesteps(*args, **kwargs)
            self.levels = self.timesteps.flip(0)
            self.ladder = self.sigmas.flip(0)
            self.timesteps = torch.cat([torch.zeros_like(self.levels[:1]), self.levels])
            self.states: list[Tensor] = []
            self._state: Tensor | None = None

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **rest: Any) -> Any:
            """The guess of the next level; after the last one, its state."""
            velocity, level = model_output.float(), len(self.states) + (self._state is not None)
            if self._state is None:
                self._state = sample.float()
            else:
                rise = self.ladder[level] - self.ladder[level - 1]
                self._state = self._state + rise * velocity
                self.states.append(self._state.to(sample.dtype))
            guess = self._state
            if level + 1 < len(self.ladder):
                guess = guess + (self.ladder[level + 1] - self.ladder[level]) * velocity
            return (guess.to(sample.dtype),)

    return Inverse.from_config(scheduler.config)
