"""A model of LLaVA-1.5's shape with random weights, larger or smaller."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

SIDE, PATCH = 336, 14
N_IMAGE = (SIDE // PATCH) ** 2


@dataclass(frozen=True)
class Shape:
    """Size of the model; the rest is LLaVA-1.5's proportions with multi-head attention."""

    layers: int
    hidden: int
    head_dim: int
    vocab: int
    vision_layers: int
    vision_hidden: int


SHAPES = {
    # A small vocabulary keeps the output layer's share of the work as small as in a large model.
    "small": Shape(4, 512, 64, 1024, vision_layers=1, vision_hidden=64),
    "llava-7b": Shape(32, 4096, 128, 32064, vision_layers=24, vision_hidden=1024),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line choose shape and precision."""
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="CPU float32, CUDA bfloat16"
    )


def build(shape: Shape, image_token: int, options: argparse.Namespace) -> Any:
    """A model with random weights, made on the device.

    Args:
        shape: Dimensions of the model.
        image_token: Token id of an image column.
        options: Device and precision.
    """
    heads = shape.hidden // shape.head_dim
    text = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11008 // 4096,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=32768,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=4 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_hidden // 64,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-1,
    )
    dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    torch.manual_seed(0)
    with torch.device(options.device):
        model: Any = Llava._from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)
