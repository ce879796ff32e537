"""Tiny pipelines, each with a way to call it, on which methods are tried.

Beside one picture a prompt (`tiny_pipelines`) and clips (`tiny_videos`): pairs of a picture and its
edit, frames of a clip that are painted side by side, and a pipeline that reads words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tiny_painter
import torch
from tiny_pipelines import FAMILIES, TEXT, Family, noise, quiet, state
from tiny_videos import VIDEOS
from torch import Tensor

FLOW_FRAMES = 3


def pairs_call(kind: Family, batch: int, guided: bool, chain: int = 2) -> dict[str, Any]:
    """A call for pairs, or longer chains, each from one noise."""
    call = kind.call(chain * batch, guided)
    call["latents"] = noise(batch, *call["latents"].shape[1:]).repeat_interleave(chain, 0)
    return call | _masks(call, chain * batch)


def _masks(call: dict[str, Any], rows: int) -> dict[str, Any]:
    names = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    kept = torch.tensor(([[1] * TEXT, [1] * 3 + [0] * 2] * rows)[:rows])
    return {name: kept for name in names if name in call}


def frames_call(kind: Family, batch: int, guided: bool) -> dict[str, Any]:
    """A call for a clip's frames, each from noise of its own."""
    call = kind.call(FLOW_FRAMES * batch, guided)
    return call | _masks(call, FLOW_FRAMES * batch)


PROMPTS = ("a red circle and a blue square", "a green circle")


def painter_call(batch: int, guided: bool) -> dict[str, Any]:
    return {
        "prompt": list(PROMPTS[:batch]), "latents": noise(batch, 4, 16, 16),
        "num_inference_steps": 2, "guidance_scale": 4.0 if guided else 1.0, "output_type": "latent",
    }  # fmt: skip


def called(
    name: str, call: Callable[[Family, int, bool], dict[str, Any]], rows: int, samples: int = 2
) -> Family:
    kind = FAMILIES[name]
    return replace(kind, call=functools.partial(call, kind), rows=rows, samples=samples)


ONES = tuple(FAMILIES)
KINDS = ("sd", "sd3", "sd35", "flux", "pixart", "wan", "qwen")
"""One of each kind of denoiser and of each way to call it."""
UNETS = tuple(name for name, kind in FAMILIES.items() if kind.denoiser == "unet")
BLOCKS = ("sd3", "sd35", "flux", "wan", "qwen")
"""Those whose blocks can be left out."""
TEXTS = ("sd", "sd21", "sdxl", "sd3", "sd35", "flux", "wan", "animatediff", "controlnet")
"""Those to whose denoiser a further text can be given."""
PAIRS = tuple(f"pairs-{name}" for name in ("sd3", "sd35", "flux", "qwen"))
CLIPS = tuple(f"clip-{name}" for name in VIDEOS if name != "motion")
STILLS = ("sd", "sd21", "sdxl", "sd3", "sd35", "flux", "pixart", "qwen", "controlnet")
FRAMES = (*(f"frames-{name}" for name in STILLS), "animatediff")
"""Clips whose frames see each other by a flow alone."""

SCENES: dict[str, Family] = {
    **FAMILIES,
    **{f"clip-{name}": kind for name, kind in VIDEOS.items()},
    **{name: called(name.removeprefix("pairs-"), pairs_call, 2) for name in PAIRS},
    **{f"frames-{name}": called(name, frames_call, FLOW_FRAMES, 1) for name in STILLS},
    "painter": Family(lambda: tiny_painter.fresh().pipeline, painter_call, "unet", ("mid",)),
}


@functools.cache
def _built(build: Callable[[], Any]) -> Any:
    return quiet(build())


def stage(scene: str) -> tuple[Any, Family]:
    """A scene's pipeline, shared by tests that leave it as it was, and how it is called."""
    kind = SCENES[scene]
    return _built(kind.build), kind


@functools.cache
def plain(scene: str, guided: bool = True, **more: Any) -> Tensor:
    """The latents of a scene's shared pipeline, with nothing attached: made once."""
    pipe, kind = stage(scene)
    return kind.run(pipe, guided=guided, **more)


def steps(method: str) -> dict[str, Any]:
    """Two steps, a first and a later one; these methods are given something for each of three."""
    return {} if method in ("paro", "primecomposer") else {"num_inference_steps": 2}


def differ(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the other's largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def rows_of(kind: Family, latents: Tensor, sample: int) -> Tensor:
    """The rows of one sample."""
    return latents[sample * kind.rows : (sample + 1) * kind.rows]


def traces(pipe: Any, denoiser: Any) -> Any:
    """All that an attachment could leave behind, but hooks' numbers."""
    grads = [(p.requires_grad, p.grad is None) for p in denoiser.parameters()]
    return state(denoiser), grads, set(vars(pipe.scheduler))
