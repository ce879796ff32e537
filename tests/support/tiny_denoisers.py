"""Tiny denoisers with random weights, one of each class, called with what `tiny_calls` makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    Call,
    for_batch,
    noise,
    ones,
    packed,
    padded,
    picture,
    places,
    pooled,
    step,
    text,
    unet_call,
    video,
    with_references,
)
from torch import nn


@dataclass(frozen=True)
class Tiny:
    """A class of denoisers, tiny.

    Attributes:
        config: Settings of the class.
        call: Arguments of a call with a batch of so many rows.
        text: The name of the input that is the text.
        of: Name of the class, if it isn't the entry's.
        axes: Axes of one row of the sample, where the denoiser cuts patches of 2 x 2 itself.
        words: True if the text is a stream of tokens.
        prompt: True if they are a prompt's.
        references: Number of tokens of other pictures behind the picture's.
    """

    config: dict[str, Any]
    call: Call
    text: str = "encoder_hidden_states"
    of: str = ""
    axes: str = ""
    words: bool = True
    prompt: bool = True
    references: int = 0

    def build(self, name: str) -> Any:
        """The denoiser of a class in diffusers, with weights that let everything show."""
        torch.manual_seed(0)
        return livened(getattr(diffusers, self.of or name)(**self.config))

    def touch(self, sample: Any, frame: int, row: int, column: int) -> tuple[int, ...]:
        """Change a latent in a patch of the first picture; gives the grid of patches."""
        first = sample[0]
        sides = dict(zip(self.axes, first.shape, strict=True))
        at = {"f": frame, "h": 2 * row, "w": 2 * column}
        first[tuple(at.get(axis, slice(None)) for axis in self.axes)] += 1
        return (sides.get("f", 1), sides["h"] // 2, sides["w"] // 2)


def livened(model: nn.Module) -> nn.Module:
    """Random weights where a model begins with zeros or ones, so that leaving a part out shows."""
    made = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 and "norm" in name and "weight" in name:
            weight.data = 0.5 + torch.rand(weight.shape, generator=made)
        elif not weight.any() or weight.ndim < 2:
            weight.data = 0.2 * torch.randn(weight.shape, generator=made)
    return model.eval()


UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
    "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 2,
}  # fmt: skip
HEADS: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 8}
ROPE8 = (2, 2, 4)


WAN: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4, "rope_max_seq_len": 32,
}  # fmt: skip


HUNYUAN15: dict[str, Any] = HEADS | {
    "in_channels": 4, "out_channels": 4, "num_layers": 4, "num_refiner_layers": 1, "patch_size": 2,
    "text_embed_dim": WIDTH, "text_embed_2_dim": 8, "image_embed_dim": 8, "rope_axes_dim": ROPE8,
    "target_size": 64,
}  # fmt: skip
HUNYUAN15_TEXT: dict[str, Any] = {
    "encoder_attention_mask": ones, "encoder_hidden_states_2": lambda b: noise(b, 3, 8, seed=5),
    "encoder_attention_mask_2": lambda b: ones(b, 3),
    "image_embeds": lambda b: torch.zeros(b, 2, 8),
}  # fmt: skip


TINY: dict[str, Tiny] = {
    "UNet2DConditionModel": Tiny(UNET, unet_call),
    "UNetMotionModel": Tiny(
        {k: v for k, v in UNET.items() if k != "attention_head_dim"}
        | {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
           "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
           "num_attention_heads": 2, "motion_num_attention_heads": 2, "motion_max_seq_length": 8},
        lambda b: text(b, sample=noise(b, 4, FRAMES, HEIGHT, COLUMNS), encoder_hidden_states=(
            noise(b, TEXT, WIDTH, seed=1).repeat_interleave(FRAMES, 0))),
    ),
    "UNet2DModel": Tiny(
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
         "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
         "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        lambda b: {"sample": noise(b, 4, HEIGHT, COLUMNS), "timestep": step(b)},
        "timestep", words=False, prompt=False,
    ),
    "UNet3DConditionModel": Tiny(
        {k: v for k, v in UNET.items() if k != "sample_size"}
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
           "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 4},
        lambda b: text(b, sample=noise(b, 4, FRAMES, HEIGHT, COLUMNS)),
    ),
    "UNetSpatioTemporalConditionModel": Tiny(
        {"sample_size": 8, "in_channels": 8, "out_channels": 4, "block_out_channels": (32, 64),
         "layers_per_block": 1, "cross_attention_dim": WIDTH, "num_attention_heads": (2, 4),
         "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
         "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
         "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")},
        lambda b: text(b, sample=noise(b, FRAMES, 8, HEIGHT, COLUMNS),
                       added_time_ids=noise(b, 3, seed=3))
        | {"encoder_hidden_states": noise(b, 1, WIDTH, seed=1)},
        prompt=False,
    ),
    "SD3Transformer2DModel": Tiny(
        HEADS | {"sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 4,
                 "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "out_channels": 4,
                 "pooled_projection_dim": POOLED, "pos_embed_max_size": 16,
                 "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        picture(pooled_projections=pooled),
        axes="chw",
    ),
    "FluxTransformer2DModel": Tiny(
        HEADS | {"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED,
                 "guidance_embeds": True, "axes_dims_rope": ROPE8},
        packed(16, pooled_projections=pooled, img_ids=places(), txt_ids=torch.zeros(TEXT, 3),
               guidance=lambda b: torch.full((b,), 3.5)),
    ),
    "Flux2Transformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "timestep_guidance_channels": 16,
                 "axes_dims_rope": (2, 2, 2, 2)},
        packed(16, img_ids=places(axes=4), txt_ids=torch.zeros(TEXT, 4),
               guidance=lambda b: torch.full((b,), 3.5)),
    ),
    "ChromaTransformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "axes_dims_rope": ROPE8,
                 "approximator_num_channels": 64, "approximator_hidden_dim": 32,
                 "approximator_layers": 1},
        packed(16, img_ids=places(), txt_ids=torch.zeros(TEXT, 3),
               attention_mask=lambda b: ones(b, TEXT + TOKENS)),
    ),
    "PixArtTransformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 8, "num_layers": 4, "cross_attention_dim": 32,
                 "caption_channels": WIDTH, "sample_size": 8, "patch_size": 2,
                 "use_additional_conditions": False},
        picture(),
        axes="chw",
    ),
    "WanTransformer3DModel": Tiny(WAN, video(), axes="cfhw"),
    "QwenImageTransformer2DModel": Tiny(
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 4,
         "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": WIDTH,
         "axes_dims_rope": (4, 4, 8)},
        packed(16, img_shapes=lambda b: [[(1, *GRID)]] * b, encoder_hidden_states_mask=ones),
    ),
    "QwenImage21Transformer2DModel": Tiny(
        {"in_channels": 16, "out_channels": 16, "num_layers": 4, "attention_head_dim": 16,
         "num_attention_heads": 4, "context_in_dim": WIDTH, "axes_dims_rope": (4, 4, 8)},
        packed(16, img_shapes=lambda b: [[(1, *GRID)]] * b, encoder_hidden_states_mask=ones,
               img_mask=lambda b: torch.cat([~ones(b), ones(b, TOKENS // 4)], 1)),
    ),
    "ZImageTransformer2DModel": Tiny(
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 4,
         "n_kv_heads": 4, "cap_feat_dim": WIDTH, "axes_dims": [4, 2, 2],
         "axes_lens": [128, 16, 16]},
        lambda b: {"x": list(noise(b, 4, 1, HEIGHT, COLUMNS)), "t": torch.full((b,), 0.5),
                   "cap_feats": list(noise(b, TEXT, WIDTH, seed=1))},
        "cap_feats",
        axes="cfhw",
    ),
    "Krea2Transformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 4, "num_key_value_heads": 2,
                 "intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": WIDTH,
                 "num_text_layers": 2, "text_num_attention_heads": 2,
                 "text_num_key_value_heads": 2, "text_intermediate_size": 16,
                 "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
                 "axes_dims_rope": (4, 2, 2)},
        packed(16, position_ids=torch.cat([torch.zeros(TEXT, 3), places()]),
               encoder_attention_mask=ones,
               encoder_hidden_states=lambda b: noise(b, TEXT, 2, WIDTH, seed=1)),
    ),
    "Lumina2Transformer2DModel": Tiny(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 2,
         "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16,
         "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 16, 16), "cap_feat_dim": WIDTH},
        picture(encoder_attention_mask=ones),
        axes="chw",
    ),
    "LTXVideoTransformer3DModel": Tiny(
        HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 4,
                 "caption_channels": WIDTH},
        lambda b: text(b, hidden_states=noise(b, FRAMES * TOKENS, 8),
                       encoder_attention_mask=ones(b),
                       num_frames=FRAMES, height=GRID[0], width=GRID[1]),
    ),
    "LTX2VideoTransformer3DModel": Tiny(
        HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 2,
                 "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2,
                 "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
                 "caption_channels": WIDTH},
        lambda b: text(b, hidden_states=noise(b, FRAMES * TOKENS, 8),
                       audio_hidden_states=noise(b, 7, 8, seed=9), audio_num_frames=7,
                       audio_encoder_hidden_states=noise(b, TEXT, WIDTH, seed=1),
                       encoder_attention_mask=ones(b), audio_encoder_attention_mask=ones(b),
                       num_frames=FRAMES, height=GRID[0], width=GRID[1]),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 4, "text_embed_dim": WIDTH,
                 "num_layers": 4, "sample_width": COLUMNS, "sample_height": HEIGHT,
                 "sample_frames": 5, "max_text_seq_length": TEXT},
        lambda b: text(b, hidden_states=noise(b, FRAMES, 4, HEIGHT, COLUMNS)),
        axes="fchw",
    ),
    "AllegroTransformer3DModel": Tiny(
        {"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
         "num_layers": 4, "cross_attention_dim": 48, "caption_channels": WIDTH,
         "sample_height": HEIGHT, "sample_width": COLUMNS, "sample_frames": FRAMES},
        video(encoder_attention_mask=ones,
              encoder_hidden_states=lambda b: noise(b, TEXT, WIDTH, seed=1)[:, None]),
        axes="cfhw",
    ),
    "BriaTransformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "axes_dims_rope": ROPE8},
        packed(16, img_ids=places(), txt_ids=torch.zeros(TEXT, 3)),
    ),
    "ChronoEditTransformer3DModel": Tiny(WAN, video(), axes="cfhw"),
    "LongCatImageTransformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "axes_dims_rope": ROPE8,
                 "pooled_projection_dim": WIDTH},
        packed(16, img_ids=places(1), txt_ids=torch.zeros(TEXT, 3)),
    ),
    "OvisImageTransformer2DModel": Tiny(
        HEADS | {"in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "axes_dims_rope": ROPE8},
        packed(16, img_ids=places(), txt_ids=torch.zeros(TEXT, 3)),
    ),
    "SkyReelsV2Transformer3DModel": Tiny(WAN, video(), axes="cfhw"),
    "WanVACETransformer3DModel": Tiny(
        WAN | {"vace_layers": [0, 2], "vace_in_channels": 4},
        video(control_hidden_states=lambda b: noise(b, 4, FRAMES, HEIGHT, COLUMNS, seed=6)),
        axes="cfhw",
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 4, "text_embed_dim": WIDTH,
                 "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 16,
                 "sample_size": 16},
        picture(**{k: (lambda b: torch.full((b, 2), 64.0))
                   for k in ("original_size", "target_size", "crop_coords")}),
        axes="chw",
    ),
    "CogView4Transformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 4, "text_embed_dim": WIDTH,
                 "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 16,
                 "sample_size": 16, "rope_axes_dim": (16, 16)},
        picture(**{k: (lambda b: torch.full((b, 2), 64.0))
                   for k in ("original_size", "target_size", "crop_coords")}),
        axes="chw",
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
                 "num_refiner_layers": 1, "guidance_embeds": True, "text_embed_dim": WIDTH,
                 "pooled_projection_dim": POOLED, "rope_axes_dim": ROPE8},
        video(encoder_attention_mask=ones, pooled_projections=pooled,
              guidance=lambda b: torch.full((b,), 6000.0)),
        axes="cfhw",
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(HUNYUAN15, video(**HUNYUAN15_TEXT), axes="cfhw"),
    "HunyuanImageTransformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
                 "num_refiner_layers": 1, "patch_size": (2, 2), "text_embed_dim": WIDTH,
                 "text_embed_2_dim": 8, "rope_axes_dim": (4, 4)},
        picture(encoder_attention_mask=ones,
                encoder_hidden_states_2=lambda b: noise(b, 3, 8, seed=5),
                encoder_attention_mask_2=lambda b: ones(b, 3)),
        axes="chw",
    ),
    "AuraFlowTransformer2DModel": Tiny(
        HEADS | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
                 "num_single_dit_layers": 2, "joint_attention_dim": WIDTH,
                 "caption_projection_dim": 32, "pos_embed_max_size": 64},
        picture(),
        axes="chw",
    ),
    "MochiTransformer3DModel": Tiny(
        {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
         "num_layers": 3, "pooled_projection_dim": 16, "text_embed_dim": WIDTH,
         "time_embed_dim": 8, "max_sequence_length": TEXT},
        video(encoder_attention_mask=ones),
        axes="cfhw",
    ),
    "DiTTransformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 8, "num_layers": 4, "norm_num_groups": 4,
                 "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000},
        lambda b: {"hidden_states": noise(b, 4, 8, 8), "timestep": step(b).long(),
                   "class_labels": torch.arange(b)},
        "class_labels",
        axes="chw", words=False, prompt=False,
    ),
    "SanaTransformer2DModel": Tiny(
        HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 2,
                 "num_cross_attention_heads": 4, "cross_attention_head_dim": 8,
                 "cross_attention_dim": 32, "caption_channels": WIDTH, "sample_size": 8},
        picture(),
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": WIDTH, "in_text_dim2": POOLED,
         "time_dim": 16, "model_dim": 32, "ff_dim": 32, "num_text_blocks": 1,
         "num_visual_blocks": 4, "axes_dims": (4, 2, 2)},
        lambda b: text(b, hidden_states=noise(b, FRAMES, HEIGHT, COLUMNS, 4),
                       pooled_projections=pooled(b), text_rope_pos=torch.arange(TEXT),
                       visual_rope_pos=[torch.arange(n) for n in (FRAMES, *GRID)]),
        axes="fhwc",
    ),
    "FLUX Kontext": Tiny(
        HEADS | {"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED,
                 "axes_dims_rope": ROPE8},
        with_references(pooled_projections=pooled, txt_ids=torch.zeros(TEXT, 3),
                        img_ids=torch.cat([places(), places(1)[:REFERENCES]])),
        of="FluxTransformer2DModel", references=REFERENCES,
    ),
    "FLUX Kontext as its pipeline has it": Tiny(
        HEADS | {"patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "pooled_projection_dim": POOLED,
                 "axes_dims_rope": ROPE8},
        lambda b: with_references(
            pooled_projections=pooled, txt_ids=torch.zeros(TEXT, 3),
            img_ids=torch.cat([places(), places(1)[:REFERENCES]]),
        )(b) | {"hidden_states": noise(b, TOKENS + REFERENCES, 64)},
        of="FluxTransformer2DModel", references=REFERENCES,
    ),
    "FLUX.2 edit": Tiny(
        HEADS | {"in_channels": 16, "num_layers": 2, "num_single_layers": 2,
                 "joint_attention_dim": WIDTH, "timestep_guidance_channels": 16,
                 "axes_dims_rope": (2, 2, 2, 2), "guidance_embeds": False},
        with_references(img_ids=torch.cat([places(axes=4), places(10, axes=4)[:REFERENCES]]),
                        txt_ids=torch.zeros(TEXT, 4)),
        of="Flux2Transformer2DModel", references=REFERENCES,
    ),
    "Qwen-Image-Edit": Tiny(
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 4,
         "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": WIDTH,
         "axes_dims_rope": (4, 4, 8), "zero_cond_t": True},
        with_references(img_shapes=lambda b: [[(1, *GRID), (1, 2, GRID[1])]] * b),
        of="QwenImageTransformer2DModel", references=REFERENCES,
    ),
    "HunyuanVideo 1.5 as its pipeline has it": Tiny(
        HUNYUAN15 | {"in_channels": 9},
        video(hidden_states=lambda b: noise(b, 9, FRAMES, HEIGHT, COLUMNS), **HUNYUAN15_TEXT),
        of="HunyuanVideo15Transformer3DModel", axes="cfhw",
    ),
}  # fmt: skip


def _padded(name: str, *masks: str, **more: Any) -> Tiny:
    """A model whose second prompt is shorter than the first."""
    stock = TINY[name]

    def call(batch: int) -> dict[str, Any]:
        found = stock.call(batch)
        return found | {n: padded(batch, found[n].shape[1]) for n in masks} | for_batch(more, batch)

    return replace(stock, of=name, call=call)


MASK = "encoder_attention_mask"
TINY |= {
    "Chroma, padded": _padded(
        "ChromaTransformer2DModel",
        attention_mask=lambda b: torch.cat([padded(b), ones(b, TOKENS)], 1),
    ),
    "HunyuanImage, padded": _padded("HunyuanImageTransformer2DModel", MASK),
    "HunyuanVideo, padded": _padded("HunyuanVideoTransformer3DModel", MASK),
    "HunyuanVideo 1.5, padded": _padded(
        "HunyuanVideo15Transformer3DModel", MASK, "encoder_attention_mask_2"
    ),
    "Krea 2, padded": _padded("Krea2Transformer2DModel", MASK),
    "Mochi, padded": _padded("MochiTransformer3DModel", MASK),
    "Qwen-Image, padded": _padded("QwenImageTransformer2DModel", "encoder_hidden_states_mask"),
    "Qwen-Image 2.1, padded": _padded(
        "QwenImage21Transformer2DModel", "encoder_hidden_states_mask"
    ),
    "Z-Image, prompts of two lengths": _padded(
        "ZImageTransformer2DModel",
        cap_feats=lambda b: [noise(1, 35 - 30 * (i % 2), WIDTH, seed=1 + i)[0] for i in range(b)],
    ),
}
"""The same classes with prompts of several lengths in one batch."""
