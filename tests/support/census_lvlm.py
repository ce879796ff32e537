"""Every image-text-to-text class of transformers, tiny: its default config with small numbers.

No pictures: a prompt's image columns hold the embedding of the placeholder, which is all that the
text tower and its attention need. `tiny_families` has complete models, with processors.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers as hf
from tiny import Tiny, _draw_weights
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

from regaze.hooks.host import Host, find_host

OTHERS = ("phi4_multimodal", "qwen2_5_omni", "qwen3_omni_moe")
"""Vision-language families that transformers keeps under another heading."""
EVERY = (*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *OTHERS)
"""All families."""
FEWER = tuple(map(int, hf.__version__.split(".")[:2])) < (5, 24)
"""True if transformers is older than the one whose families the table lists."""
BROKEN = {("5.24.0", "llama4")}
"""Models whose forward raises: Llama 4's looks for an output that its text model doesn't give."""

IMAGE, VIDEO = 9, 10
PROMPT = (1, 20, 21, 22, *[IMAGE] * 9, 30, 31, 32, 33, 34, 35)
LONGER = (1, 23, 24, 25, 26, 27, 28, *[IMAGE] * 9, 36, 37, 38, 39)

SEEING = ("blip-2", "instructblip", "instructblipvideo")
"""Families that are given pixels: their text towers generate alone."""

_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 64,
    "attention_chunk_size": 64,
    # Experts.
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Low-rank keys and values.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    # Linear attention.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # Inputs of each layer.
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "intermediate_size_mlp": 48,
    # What older configs call the same.
    "decoder_layers": 4,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "ffn_dim": 48,
    "layers": 4,
    "attention_heads": 4,
    "embed_dim": 32,
    "word_embed_proj_dim": 32,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 16,
    "image_size": 24,
    "patch_size": 8,
    "embed_dim": 32,
    "out_hidden_size": 32,
    "vocab_size": 128,
    "num_query_tokens": 4,
    "encoder_hidden_size": 32,
    "projection_dim": 32,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
}
_TEXT_PARTS = ("text_config", "llm_config", "vlm_config", "dit_config", "decoder")


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary settings with a share of the head for each axis."""
    given = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": {**given, **more}}


MIXED = ["sliding_attention", "full_attention"] * 2
WIDER = {1: {"head_dim": 32}, 3: {"head_dim": 32}}
VQ = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32}

CHANGES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "text_config": rope(),
        "vision_config": {
            "codebook_size": 16,
            "embed_dim": 8,
            "latent_channels": 8,
            "base_channels": 32,
        },
        "audio_config": {"codebook_size": 16, "codebook_dim": 32},
        "image_token_offset": 64,
        "audio_token_offset": 80,
    },
    "chameleon": {"vocabulary_map": {"<image>": IMAGE}, "num_key_value_heads": 4, "vq_config": VQ},
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {
                "full_attention": None,
                "sliding_attention": rope(4, 2, 2)["rope_parameters"],
            }
        }
    },
    "cosmos3_edge": {"text_config": rope(4, 2, 2)},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] * 4}},
    "granite_docling": {"text_config": {"residual_multiplier": 1.0, "attention_multiplier": 0.25}},
    "emu3": {"vocabulary_map": {"<image>": IMAGE}, "vq_config": VQ},
    "ernie4_5_vl_moe": {
        "text_config": {"moe_intermediate_size": [16, 16], "moe_num_experts": 4, **rope(1, 1, 2)}
    },
    "glm46v": {"text_config": rope(1, 1, 2)},
    "glm4v": {"text_config": rope(1, 1, 2)},
    "glm4v_moe": {"text_config": rope(1, 1, 2, partial_rotary_factor=1.0)},
    "glmga": {"text_config": rope(1, 1, 2)},
    "glm_ocr": {"text_config": rope(1, 1, 2)},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "granite4_vision": {
        "downsample_rate": "1/1",
        "deepstack_layer_map": [(-1, 1)],
        "vision_config": {"hidden_size": 64},
    },
    "phi4_multimodal": {"vision_config": {"image_token_id": IMAGE}},
    "muse_spark": {
        "text_config": {"qk_scale_factor": 1.0},
        "audio_config": {
            "num_hidden_layers": 1,
            "patch_sizes": [8],
            "hidden_sizes": [32],
            "depths": [1],
        },
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "gemma3": {"text_config": {"layer_types": MIXED}},
    "shieldgemma2": {"text_config": {"layer_types": MIXED}},
    "fast_vlm": {"vision_config": {"hidden_size": 32}},
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": 32}}},
    "gemma3n": {
        "text_config": {
            "layer_types": MIXED,
            "num_kv_shared_layers": 2,
            "intermediate_size": [48] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
        }
    },
    "gemma4": {
        "text_config": {
            "layer_types": MIXED,
            "num_kv_shared_layers": 2,
            "per_layer_config": WIDER,
            "use_bidirectional_attention": "vision",
        }
    },
    "gemma4_unified": {
        "text_config": {"layer_types": MIXED, "use_bidirectional_attention": "vision"}
    },
    "blip-2": {"num_query_tokens": 9},
    "instructblip": {"num_query_tokens": 9, "qformer_config": {"vocab_size": 128}},
    "instructblipvideo": {"num_query_tokens": 3, "video_token_index": IMAGE},
    "hunyuan_vl": {
        "text_config": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 2, 2, 2],
            }
        }
    },
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "janus": {"vq_config": VQ},
    "kimi_k25": {"text_config": {"num_key_value_heads": 4}},
    "mistral4": {"num_key_value_heads": 4},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "lfm2_vl": {
        "text_config": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    },
    "molmo2": {
        "vision_config": {"image_size": [24, 24]},
        "adapter_config": {"vision_feature_layer": [-1], "text_hidden_size": 32},
    },
    "paddleocr_vl": {"text_config": rope(2, 3, 3)},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 11, "text_config": rope(2, 1, 1)},
    "qwen3_omni_moe_thinker": {
        "vision_start_token_id": 11,
        "text_config": rope(4, 2, 2, mrope_interleaved=True),
    },
    "qwen2_5_vl": {"text_config": rope(2, 1, 1)},
    "qwen2_vl": {"text_config": rope(2, 1, 1)},
    "qwen3_vl": {"text_config": rope(4, 2, 2, mrope_interleaved=True)},
    "qwen3_vl_moe": {"text_config": rope(4, 2, 2, mrope_interleaved=True)},
}
"""Further entries of a family's config, part by part."""


def shrink(config: Any, role: str = "whole", changes: Mapping[str, Any] | None = None) -> Any:
    """The same kind of config with small numbers in all its parts.

    Args:
        config: The default config.
        role: "whole", "text" or "vision": which small numbers.
        changes: Fields, and parts as mappings of fields, that get other values.
    """
    changes = dict(changes or {})
    known = {f.name for f in dataclasses.fields(config)}
    parts = {
        name: part
        for name, part in vars(config).items()
        if isinstance(part, hf.PreTrainedConfig) and not name.startswith("_")
    }
    alone = role == "whole" and not any(name in _TEXT_PARTS for name in parts)
    numbers = _TEXT if role == "text" or alone else _VISION if role == "vision" else {}
    values = {name: value for name, value in numbers.items() if name in known}
    for name, part in parts.items():
        if (change := changes.pop(name, {})) is not None:
            kind = "text" if name in _TEXT_PARTS else "vision"
            values[name] = shrink(part, kind, change).to_dict()
        else:
            values[name] = None
    if role == "whole":
        for name in ("image_token_id", "image_token_index", "image_patch_id"):
            values |= {name: IMAGE} if name in known else {}
        for name in ("video_token_id", "video_token_index"):
            values |= {name: VIDEO} if name in known else {}
    return type(config)(**{**values, **changes})


def tiny_config(family: str, shrunk: bool = True) -> Any:
    """The tiny config of a family, or its default one."""
    config = CONFIG_MAPPING[family]()
    return shrink(config, changes=CHANGES.get(family)) if shrunk else config


@functools.cache
def bare_host(family: str) -> Host:
    """Facts about a family's tiny model, which has no weights."""
    with torch.device("meta"):
        return find_host(_build(family))


def _build(family: str) -> hf.PreTrainedModel:
    auto: Any = hf.AutoModelForCausalLM if family in OTHERS else hf.AutoModelForImageTextToText
    with mock.patch.object(TimmWrapperModel, "__new__", _without_timm):
        model: hf.PreTrainedModel = auto.from_config(tiny_config(family), dtype=torch.float32)
    model.eval()
    return model


def tiny_model(family: str) -> Tiny:
    """A tiny random model of a family, with a processor that knows no tokens."""
    if (hf.__version__, family) in BROKEN:
        pytest.skip(f"{family} of transformers {hf.__version__} can't run, edited or not")
    torch.manual_seed(0)
    model = _build(family)
    _draw_weights(model, torch.Generator().manual_seed(0))
    for module in model.modules():
        if generation := getattr(module, "generation_config", None):
            generation.eos_token_id = None  # a random model would stop anywhere
            generation.pad_token_id = 0
    return Tiny(family, model, SimpleNamespace(tokenizer=_Tokenizer()), IMAGE)


def _without_timm(cls: type, config: Any, *args: Any, **kwargs: Any) -> hf.PreTrainedModel:
    """A vision tower of a library that needn't be here; prompts without pictures don't use it."""
    return NoVision(config)


class NoVision(hf.PreTrainedModel):
    """A vision tower without weights."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_init()  # type: ignore[no-untyped-call]


class _Tokenizer:
    """Knows no tokens."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["?"] * len(ids)


@contextmanager
def pictures(model: Tiny) -> Iterator[None]:
    """Give each image column a vector of its own, as a vision tower would."""
    if model.family in SEEING:
        yield
        return
    ids: list[Tensor] = []
    tower = model.tower
    weight = tower.get_input_embeddings().weight.detach()
    noise = torch.randn(16, weight.shape[1], generator=torch.Generator().manual_seed(1))
    noise *= weight.std()

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids[:] = [kwargs["input_ids"]] if kwargs.get("input_ids") is not None else []

    def paint(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs.get("inputs_embeds")
        if not ids or embeds is None or embeds.shape[:2] != ids[0].shape or embeds.shape[1] == 1:
            return None
        image = ids[0] == IMAGE
        which = (image.cumsum(1) - 1).clamp(min=0)
        painted = torch.where(image[..., None], noise[which], embeds)
        return args, {**kwargs, **_deepstack(model, image, noise), "inputs_embeds": painted}

    handles = [
        model.model.register_forward_pre_hook(note, with_kwargs=True),
        tower.register_forward_pre_hook(paint, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _deepstack(model: Tiny, image: Tensor, noise: Tensor) -> dict[str, Any]:
    """Vision features added to image columns in later layers, where a family does that."""
    again = noise[(image.cumsum(1) - 1).clamp(min=0)][image]
    taken = inspect.signature(type(model.tower).forward).parameters
    if "vision_mask" in taken:
        return {"vision_mask": image[..., None], "deepstack_features": {1: again}}
    if "visual_pos_masks" in taken:
        return {"visual_pos_masks": image, "deepstack_visual_embeds": [again]}
    return {}


def prompts(family: str, *rows: Sequence[int]) -> dict[str, Any]:
    """A left-padded batch of prompts."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if family in ("paligemma", "gemma3", "shieldgemma2"):
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family.startswith("gemma4"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    if family == "ernie4_5_vl_moe":
        inputs["moe_mm_token_type_ids"] = (ids == IMAGE).int()
    if family in SEEING:
        frames = (3,) if family == "instructblipvideo" else ()
        generator = torch.Generator().manual_seed(1)
        picture = torch.randn(*frames, 3, 24, 24, generator=generator)
        inputs["pixel_values"] = torch.stack([picture] * len(rows))
    if family.startswith("instructblip"):
        inputs["qformer_input_ids"] = torch.tensor([[1, 5, 6]] * len(rows))
    return inputs
