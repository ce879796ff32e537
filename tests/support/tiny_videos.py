"""Tiny pipelines of video transformers and of a U-Net with motion modules at three levels."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    MochiPipeline,
    MotionAdapter,
    UNetMotionModel,
)
from tiny_denoisers import TINY
from tiny_pipelines import (
    COLUMNS,
    FAMILIES,
    HEIGHT,
    POOLED,
    TEXT,
    Family,
    ddim,
    noise,
    sd_call,
    unet,
)

FRAMES = 3


def transformer(name: str) -> Any:
    return TINY[name].build(name)


def cogvideox() -> CogVideoXPipeline:
    model = transformer("CogVideoXTransformer3DModel")
    return CogVideoXPipeline(None, None, None, model, CogVideoXDDIMScheduler())


def cogvideox_call(batch: int, guided: bool) -> dict[str, Any]:
    latents = noise(batch, FRAMES, 4, HEIGHT, COLUMNS)
    return sd_call(batch, guided) | {"latents": latents, "num_frames": 9}


def hunyuan() -> HunyuanVideoPipeline:
    model = transformer("HunyuanVideoTransformer3DModel")
    scheduler = FlowMatchEulerDiscreteScheduler()
    return HunyuanVideoPipeline(None, None, model, None, scheduler, None, None)


def hunyuan_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided) | {
        "latents": noise(batch, 4, FRAMES, HEIGHT, COLUMNS), "num_frames": 9,
        "prompt_attention_mask": torch.ones(batch, TEXT), "guidance_scale": 6.0,
        "pooled_prompt_embeds": noise(batch, POOLED, seed=3),
    }  # fmt: skip
    if guided:
        call |= {
            "true_cfg_scale": 4.0, "negative_prompt_attention_mask": torch.ones(batch, TEXT),
            "negative_pooled_prompt_embeds": noise(batch, POOLED, seed=4),
        }  # fmt: skip
    return call


def mochi() -> MochiPipeline:
    model = transformer("MochiTransformer3DModel")
    return MochiPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, model)


def mochi_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided) | {
        "latents": noise(batch, 4, FRAMES, HEIGHT, COLUMNS), "num_frames": 13,
        "prompt_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool),
    }  # fmt: skip
    if guided:
        mask = torch.ones(batch, TEXT, dtype=torch.bool)
        call |= {"negative_prompt_attention_mask": mask}
    return call


def wan_call(batch: int, guided: bool) -> dict[str, Any]:
    latents = noise(batch, 4, FRAMES, HEIGHT, COLUMNS)
    return FAMILIES["wan"].call(batch, guided) | {"latents": latents, "num_frames": 9}


def animatediff() -> AnimateDiffPipeline:
    """With motion modules in up_blocks.1 and up_blocks.2."""
    down, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    base = unet(block_out_channels=(8, 8, 16), down_block_types=down, up_block_types=up)
    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=(8, 8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, motion_max_seq_length=32,
    )  # fmt: skip
    motion = UNetMotionModel.from_unet2d(base, adapter)
    for name, weight in motion.named_parameters():
        if "motion_modules" in name and ("proj_out" in name or ".to_" in name):
            torch.nn.init.normal_(weight, std=0.5)  # Maps that aren't near uniform.
    return AnimateDiffPipeline(None, None, None, motion.eval(), adapter, ddim())


def animatediff_call(batch: int, guided: bool, frames: int = 4) -> dict[str, Any]:
    call = sd_call(batch, guided)
    return call | {"latents": noise(batch, 4, frames, HEIGHT, COLUMNS), "num_frames": frames}


VIDEOS = {
    "wan": Family(FAMILIES["wan"].build, wan_call, "transformer", (2,), halves=False),
    "cogvideox": Family(cogvideox, cogvideox_call, "transformer", (2,)),
    "hunyuan": Family(hunyuan, hunyuan_call, "transformer", (2,), halves=False),
    "mochi": Family(mochi, mochi_call, "transformer", (1,)),
    "motion": Family(animatediff, animatediff_call, "unet", ("mid",), frames=4),
}
