"""Tiny pipelines with random weights, one per family, that run in a blink on a CPU.

They take prompt embeddings instead of text, and return latents, so none needs a text encoder; those
that start from an image have a tiny autoencoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

TEXT, WIDTH, POOLED = 5, 16, 12
HEIGHT, COLUMNS = 8, 6
"""Latents aren't square."""


@dataclass(frozen=True)
class Family:
    """A kind of pipeline.

    Attributes:
        build: Makes one, with random weights.
        call: Its arguments for a batch, with and without classifier-free guidance.
        denoiser: Name of the part that is attached to.
        perturb: Layers to perturb, of which the first isn't the model's first.
        halves: Whether guidance runs as two halves of one batch.
    """

    build: Callable[[], Any]
    call: Callable[[int, bool], dict[str, Any]]
    denoiser: str
    perturb: tuple[int | str, ...]
    halves: bool = True

    def run(self, pipe: Any, batch: int = 2, guided: bool = True, **more: Any) -> Tensor:
        """The latents that a pipeline makes, always from the same noise and prompts."""
        out = pipe(**{**self.call(batch, guided), **more})
        latents = out[0]
        assert isinstance(latents, Tensor)
        return latents


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise; the first rows of a larger batch are those of a smaller one."""
    rows = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(100 * seed + i))
            for i in range(shape[0])]  # fmt: skip
    return torch.stack(rows)


def ddim(**settings: Any) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **settings,
    )  # fmt: skip


def vae() -> Any:
    torch.manual_seed(1)
    model: Any = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return model.eval()


UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
    "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def unet(**settings: Any) -> Any:
    torch.manual_seed(0)
    model: Any = UNet2DConditionModel(**{"attention_head_dim": 2, **UNET, **settings})
    return model.eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd_parts(**settings: Any) -> dict[str, Any]:
    """Arguments of all Stable Diffusion pipelines; settings are the U-Net's."""
    return {
        "vae": None, "text_encoder": None, "tokenizer": None, "unet": unet(**settings),
        "scheduler": ddim(), "safety_checker": None, "feature_extractor": None,
        "requires_safety_checker": False,
    }  # fmt: skip


def sd_call(batch: int, guided: bool) -> dict[str, Any]:
    return {
        "prompt_embeds": noise(batch, TEXT, WIDTH, seed=1),
        "negative_prompt_embeds": noise(batch, TEXT, WIDTH, seed=2) if guided else None,
        "latents": noise(batch, 4, HEIGHT, COLUMNS), "height": 8 * HEIGHT, "width": 8 * COLUMNS,
        "guidance_scale": 5.0 if guided else 1.0, "num_inference_steps": 3, "output_type": "latent",
    }  # fmt: skip


def sdxl_parts() -> dict[str, Any]:
    parts = sd_parts(
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + POOLED,
    )  # fmt: skip
    for name in ("safety_checker", "feature_extractor", "requires_safety_checker"):
        del parts[name]
    return {**parts, "text_encoder_2": None, "tokenizer_2": None}


def sdxl_call(batch: int, guided: bool) -> dict[str, Any]:
    return {
        **sd_call(batch, guided), "pooled_prompt_embeds": noise(batch, POOLED, seed=3),
        "negative_pooled_prompt_embeds": noise(batch, POOLED, seed=4) if guided else None,
    }  # fmt: skip


def sd3_transformer(dual: tuple[int, ...] = (), qk_norm: str | None = None) -> Any:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=WIDTH, caption_projection_dim=32,
        pooled_projection_dim=POOLED, out_channels=4, pos_embed_max_size=16,
        dual_attention_layers=dual, qk_norm=qk_norm,
    )  # fmt: skip
    return _livened(model)


def _livened(model: Any) -> Any:
    """Random scales in norms, so that leaving one out shows."""
    for name, weight in model.named_parameters():
        if "norm" in name and weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model.eval()


def sd3_parts(**settings: Any) -> dict[str, Any]:
    none = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3",
         "tokenizer_3")
    )  # fmt: skip
    return {
        **none, "transformer": sd3_transformer(**settings),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip


def sd3_call(batch: int, guided: bool) -> dict[str, Any]:
    return {**sdxl_call(batch, guided)}


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=WIDTH, pooled_projection_dim=POOLED,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, _livened(transformer)
    )


def flux_call(batch: int, guided: bool) -> dict[str, Any]:
    call = {
        "prompt_embeds": noise(batch, TEXT, WIDTH, seed=1),
        "pooled_prompt_embeds": noise(batch, POOLED, seed=3),
        "latents": noise(batch, HEIGHT // 2 * COLUMNS // 2, 16), "height": 8 * HEIGHT,
        "width": 8 * COLUMNS, "guidance_scale": 3.5, "num_inference_steps": 3,
        "output_type": "latent",
    }  # fmt: skip
    if guided:
        call |= {
            "true_cfg_scale": 4.0,
            "negative_prompt_embeds": noise(batch, TEXT, WIDTH, seed=2),
            "negative_pooled_prompt_embeds": noise(batch, POOLED, seed=4),
        }
    return call


def pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4,
        cross_attention_dim=32, caption_channels=WIDTH, sample_size=8, patch_size=2,
        use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(None, None, None, _livened(transformer), ddim())


def pixart_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided)
    mask = torch.tensor([[1.0] * 4 + [0.0]] * batch)
    call["prompt_attention_mask"] = mask
    if guided:
        call["negative_prompt_attention_mask"] = mask
    return call | {"negative_prompt": None, "use_resolution_binning": False}


def wan() -> WanPipeline:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=WIDTH, freq_dim=16, ffn_dim=32, num_layers=4, rope_max_seq_len=32,
    )  # fmt: skip
    return WanPipeline(
        None, None, None, FlowMatchEulerDiscreteScheduler(shift=3.0), _livened(transformer)
    )


def wan_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided)
    return call | {"latents": noise(batch, 4, 2, HEIGHT, COLUMNS), "num_frames": 5}


def qwen() -> QwenImagePipeline:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, _livened(transformer)
    )


def qwen_call(batch: int, guided: bool) -> dict[str, Any]:
    mask = torch.tensor([[1] * TEXT, [1] * 3 + [0] * 2])[:batch]
    call = {
        "prompt_embeds": noise(batch, TEXT, WIDTH, seed=1), "prompt_embeds_mask": mask,
        "latents": noise(batch, HEIGHT // 2 * COLUMNS // 2, 16), "height": 8 * HEIGHT,
        "width": 8 * COLUMNS, "num_inference_steps": 3, "output_type": "latent",
        "true_cfg_scale": 1.0,
    }  # fmt: skip
    if guided:
        call |= {
            "true_cfg_scale": 4.0, "negative_prompt_embeds_mask": mask,
            "negative_prompt_embeds": noise(batch, TEXT, WIDTH, seed=2),
        }  # fmt: skip
    return call


def animatediff() -> AnimateDiffPipeline:
    base = unet(attention_head_dim=2)
    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, motion_max_seq_length=8,
    )  # fmt: skip
    motion = UNetMotionModel.from_unet2d(base, adapter)
    for name, weight in motion.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.normal_(weight, std=0.1)  # They begin at zero.
    return AnimateDiffPipeline(None, None, None, motion.eval(), adapter, ddim())


def animatediff_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided)
    return call | {"latents": noise(batch, 4, 3, HEIGHT, COLUMNS), "num_frames": 3}


def controlnet() -> StableDiffusionControlNetPipeline:
    parts = sd_parts() | {"vae": vae()}
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 4, 4, 4))
    for name, weight in net.named_parameters():
        if "controlnet" in name or "conv_out" in name:
            torch.nn.init.normal_(weight, std=0.3)  # They begin at zero.
    return StableDiffusionControlNetPipeline(controlnet=net.eval(), **parts)


def image(batch: int, channels: int = 3) -> Tensor:
    return noise(batch, channels, 8 * HEIGHT, 8 * COLUMNS, seed=5).sigmoid()


def controlnet_call(batch: int, guided: bool) -> dict[str, Any]:
    return sd_call(batch, guided) | {"image": noise(batch, 3, HEIGHT * 8, COLUMNS * 8).sigmoid()}


def img2img_call(batch: int, guided: bool) -> dict[str, Any]:
    call = sd_call(batch, guided) | {"image": image(batch), "strength": 0.7}
    for name in ("latents", "height", "width"):
        del call[name]
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    return call | {"num_inference_steps": 5, "generator": generators}


def inpaint_call(batch: int, guided: bool) -> dict[str, Any]:
    mask = (image(batch, 1) > 0.5).float()
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    return sd_call(batch, guided) | {
        "image": image(batch), "mask_image": mask, "generator": generators,
    }  # fmt: skip


UP = ("up_blocks.1", "mid")
FAMILIES: dict[str, Family] = {
    "sd": Family(lambda: StableDiffusionPipeline(**sd_parts()), sd_call, "unet", UP),
    "sd21": Family(
        lambda: StableDiffusionPipeline(
            **sd_parts(attention_head_dim=(2, 4), use_linear_projection=True)
            | {"scheduler": ddim(prediction_type="v_prediction")}
        ), sd_call, "unet", UP,
    ),
    "sdxl": Family(lambda: StableDiffusionXLPipeline(**sdxl_parts()), sdxl_call, "unet", UP),
    "sd3": Family(
        lambda: StableDiffusion3Pipeline(**sd3_parts()), sd3_call, "transformer", (1, 3)
    ),
    "sd35": Family(
        lambda: StableDiffusion3Pipeline(**sd3_parts(dual=(0, 1), qk_norm="rms_norm")), sd3_call,
        "transformer", (1, "transformer_blocks.1.attn2"),
    ),
    "flux": Family(flux, flux_call, "transformer", (1, 2, 3), halves=False),
    "pixart": Family(pixart, pixart_call, "transformer", (2, 3)),
    "wan": Family(wan, wan_call, "transformer", (2,), halves=False),
    "qwen": Family(qwen, qwen_call, "transformer", (1, 2), halves=False),
    "animatediff": Family(animatediff, animatediff_call, "unet", UP),
    "controlnet": Family(controlnet, controlnet_call, "unet", UP),
    "img2img": Family(
        lambda: StableDiffusionImg2ImgPipeline(**sd_parts() | {"vae": vae()}), img2img_call,
        "unet", UP,
    ),
    "inpaint": Family(
        lambda: StableDiffusionInpaintPipeline(**sd_parts(in_channels=9) | {"vae": vae()}),
        inpaint_call, "unet", UP,
    ),
}  # fmt: skip


@functools.cache
def tiny(name: str) -> Any:
    """A family's pipeline, shared by tests that leave it as it was."""
    return quiet(FAMILIES[name].build())
