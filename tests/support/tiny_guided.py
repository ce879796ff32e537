"""Tiny pipelines of many classes, without encoders of text and pictures: to see how they guide.

Each is made around the tiny denoiser of its class, takes embeddings of a prompt and gives latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from tiny_calls import (
    COLUMNS,
    FRAMES,
    GRID,
    HEIGHT,
    POOLED,
    REFERENCES,
    TEXT,
    TOKENS,
    WIDTH,
    noise,
    ones,
)
from tiny_denoisers import TINY
from torch import Tensor, nn

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Pipe:
    """A class of pipelines.

    Attributes:
        denoiser: Class of its denoiser, or a name in `TINY`.
        call: Arguments without prompts.
        how: "batch", "calls", or "none" if it has no guidance of its own.
        cond_first: True if the conditional half or call comes first.
        strength: Name of the argument that says how strongly it guides; empty if a guider does.
        off: The setting that switches guidance off.
        masks: Name of the prompt's mask.
        pooled: True if it takes pooled embeddings, too.
        texts: Name of the prompts' embeddings, with "{}" for "" or "negative_".
        parts: Components that it can't do without.
        more: Further arguments of each prompt, whose names get "negative_", too.
        beside: Number of channels (or tokens) of the denoiser's sample that aren't the latents'.
    """

    denoiser: str
    call: Callable[[], Arguments]
    how: str = "batch"
    cond_first: bool = False
    strength: str = "guidance_scale"
    off: float | None = 1.0
    masks: str = ""
    pooled: bool = False
    texts: str = "{}prompt_embeds"
    parts: Callable[[], Arguments] = dict
    more: Callable[[], Arguments] = field(default=dict)
    beside: int = 0

    def build(self, name: str) -> Any:
        """The pipeline of a class in diffusers."""
        kind = getattr(diffusers, name)
        taken = inspect.signature(kind.__init__).parameters
        parts = {n: None for n, p in taken.items() if n != "self" and p.default is p.empty}
        parts |= {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
        parts |= {"transformer": TINY[self.denoiser].build(self.denoiser)}
        pipe = kind(**parts | self.parts())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Any, guided: bool) -> Tensor:
        """The latents that a pipeline makes."""
        if not self.strength:
            (pipe.guider.enable if guided else pipe.guider.disable)()
        latents = pipe(**self.arguments(guided))[0]
        assert isinstance(latents, Tensor)
        return latents

    def arguments(self, guided: bool) -> Arguments:
        """Arguments of a call, with and without guidance."""
        found = SIZE | self.call()
        for sign, seed in (("", 1), ("negative_", 2)):
            # A guider is switched off itself; see `run`.
            if sign and (self.how == "none" or not guided and self.strength):
                continue
            text = noise(1, TEXT, WIDTH, seed=seed)
            found[self.texts.format(sign)] = text
            if self.denoiser == "Krea2Transformer2DModel":
                found[self.texts.format(sign)] = noise(1, TEXT, 2, WIDTH, seed=seed)
            if self.denoiser == "ZImageTransformer2DModel":
                found[self.texts.format(sign)] = list(text)
            if self.masks:
                found[sign + self.masks] = ones(1)
            if self.pooled:
                found[f"{sign}pooled_prompt_embeds"] = noise(1, POOLED, seed=seed + 2)
            found |= {sign + name: value for name, value in self.more().items()}
        if self.how != "none" and self.strength:
            found[self.strength] = 4.0 if guided else self.off
        return found


SIZE: Arguments = {
    "height": 8 * HEIGHT, "width": 8 * COLUMNS, "num_inference_steps": 2, "output_type": "latent",
}  # fmt: skip


class Stub(nn.Module):
    """A part that only says what it is like."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), **config)
        self.bn = nn.BatchNorm2d(16).eval()

    def decode(self, latents: Tensor, **settings: Any) -> Any:
        return SimpleNamespace(sample=latents[:, :3])

    def forward(self, embeds: Tensor, mask: Tensor, **settings: Any) -> Any:
        return embeds, embeds, mask


class HunyuanVae(Stub):
    temporal_compression_ratio, spatial_compression_ratio = 4, 16


class AudioVae(Stub):
    latents_mean, latents_std = torch.zeros(8), torch.ones(8)
    mel_compression_ratio = temporal_compression_ratio = 4


class VideoVae(AudioVae):
    temporal_compression_ratio, spatial_compression_ratio = 8, 32


class Words:
    """A processor of which nothing is asked but the length of its template."""

    tokenizer = SimpleNamespace(encode=lambda text: [7])

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[1]]


def latents(*shape: int, **more: Any) -> Callable[[], Arguments]:
    return lambda: {"latents": noise(1, *shape), **more}


PICTURE = latents(4, HEIGHT, COLUMNS)
PACKED = latents(TOKENS, 16)
VIDEO = latents(4, FRAMES, HEIGHT, COLUMNS, num_frames=5)
MASKS = "prompt_attention_mask"


def byt5() -> Arguments:
    return {"prompt_embeds_2": noise(1, 3, 8, seed=5), "prompt_embeds_mask_2": ones(1, 3)}


def kandinsky() -> Arguments:
    return {"prompt_embeds_clip": noise(1, POOLED, seed=3),
            "prompt_cu_seqlens": torch.tensor([0, TEXT])}  # fmt: skip


def ltx2() -> Arguments:
    sound = {"sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 8, "latent_channels": 4}
    return {"connectors": Stub(), "vae": VideoVae(scaling_factor=1.0),
            "audio_vae": AudioVae(**sound)}  # fmt: skip


def cfg() -> Arguments:
    return {"guider": diffusers.ClassifierFreeGuidance(guidance_scale=4.0)}


def ddim() -> Arguments:
    return {"scheduler": diffusers.CogVideoXDDIMScheduler()}


PIPES: dict[str, Pipe] = {
    "AllegroPipeline": Pipe(
        "AllegroTransformer3DModel",
        latents(4, FRAMES, HEIGHT, COLUMNS, num_frames=5, negative_prompt=None), masks=MASKS,
        parts=lambda: {"scheduler": diffusers.DDIMScheduler()},
    ),
    "AuraFlowPipeline": Pipe("AuraFlowTransformer2DModel", PICTURE, masks=MASKS),
    "BriaPipeline": Pipe(
        "BriaTransformer2DModel", PACKED, parts=lambda: {"vae": Stub(shift_factor=0)}
    ),
    "ChromaPipeline": Pipe(
        "ChromaTransformer2DModel", PACKED, "calls", cond_first=True, masks=MASKS
    ),
    "CogVideoXPipeline": Pipe(
        "CogVideoXTransformer3DModel", latents(FRAMES, 4, HEIGHT, COLUMNS, num_frames=5),
        parts=ddim,
    ),
    "CogView3PlusPipeline": Pipe("CogView3PlusTransformer2DModel", PICTURE, parts=ddim),
    "CogView4Pipeline": Pipe("CogView4Transformer2DModel", PICTURE, "calls", cond_first=True),
    "Flux2KleinPipeline": Pipe(
        "Flux2Transformer2DModel", latents(16, *GRID), "calls", cond_first=True,
        parts=lambda: {"vae": Stub(batch_norm_eps=1e-4)},
    ),
    "Flux2Pipeline": Pipe("Flux2Transformer2DModel", latents(16, *GRID), "none"),
    "FluxKontextPipeline": Pipe(
        "FLUX Kontext as its pipeline has it",
        latents(
            TOKENS, 64, image=noise(1, 16, 4, COLUMNS, seed=7), _auto_resize=False, max_area=3072
        ),
        "calls", cond_first=True, strength="true_cfg_scale", pooled=True, beside=REFERENCES,
    ),
    "HunyuanImagePipeline": Pipe(
        "HunyuanImageTransformer2DModel",
        latents(4, HEIGHT, COLUMNS, height=32 * HEIGHT, width=32 * COLUMNS), "calls",
        cond_first=True, strength="", masks="prompt_embeds_mask", parts=cfg, more=byt5,
    ),
    "HunyuanVideo15Pipeline": Pipe(
        "HunyuanVideo 1.5 as its pipeline has it",
        latents(4, FRAMES, HEIGHT, COLUMNS, num_frames=5, height=16 * HEIGHT, width=16 * COLUMNS),
        "calls", cond_first=True, strength="", masks="prompt_embeds_mask", more=byt5,
        parts=lambda: cfg() | {"vae": HunyuanVae(latent_channels=4)}, beside=5,
    ),
    "HunyuanVideoPipeline": Pipe(
        "HunyuanVideoTransformer3DModel", VIDEO, "calls", cond_first=True,
        strength="true_cfg_scale", masks=MASKS, pooled=True,
    ),
    "Kandinsky5T2VPipeline": Pipe(
        "Kandinsky5Transformer3DModel", latents(FRAMES, HEIGHT, COLUMNS, 4, num_frames=5), "calls",
        cond_first=True, texts="{}prompt_embeds_qwen", more=kandinsky,
    ),
    "Krea2Pipeline": Pipe(
        "Krea2Transformer2DModel", PACKED, "calls", cond_first=True, off=0.0,
        masks="prompt_embeds_mask",
    ),
    "LTX2Pipeline": Pipe(
        "LTX2VideoTransformer3DModel",
        lambda: {
            "height": 32 * GRID[0], "width": 32 * GRID[1], "num_frames": 9,
            "latents": noise(1, FRAMES * TOKENS, 8), "audio_latents": noise(1, 9, 8),
            "stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0,
            "audio_modality_scale": 1.0, "audio_guidance_scale": 1.0,
        },
        masks=MASKS, parts=ltx2,
    ),
    "LTXPipeline": Pipe(
        "LTXVideoTransformer3DModel",
        latents(FRAMES * TOKENS, 8, height=32 * GRID[0], width=32 * GRID[1], num_frames=9),
        masks=MASKS,
    ),
    "Lumina2Pipeline": Pipe(
        "Lumina2Transformer2DModel", PICTURE, "calls", cond_first=True, masks=MASKS
    ),
    "MochiPipeline": Pipe(
        "MochiTransformer3DModel", latents(4, FRAMES, HEIGHT, COLUMNS, num_frames=7), masks=MASKS
    ),
    "OvisImagePipeline": Pipe(
        "OvisImageTransformer2DModel", latents(TOKENS, 16, negative_prompt=None), "calls",
        cond_first=True,
    ),
    "QwenImage21Pipeline": Pipe(
        "QwenImage21Transformer2DModel",
        latents(16, 16, height=64, width=64, use_kv_cache=False), "calls",
        cond_first=True, strength="true_cfg_scale", masks="prompt_embeds_mask",
        parts=lambda: {"processor": Words()},
    ),
    "SkyReelsV2Pipeline": Pipe("SkyReelsV2Transformer3DModel", VIDEO, "calls", cond_first=True),
    "ZImagePipeline": Pipe("ZImageTransformer2DModel", PICTURE, cond_first=True, off=0.0),
}  # fmt: skip
