"""EfficientNet-lite0 in transformers' own EfficientNet class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetModel

WIDTH = 1280
"""Size of a cell's features."""
STRIDE = 32
"""Side of a cell, in pixels."""

# Sigmoid gives exactly 1 from here on, in float16 as in float32.
_OPEN = 32.0

_PLACES = (
    (r"_conv_stem\.", "embeddings.convolution."),
    (r"_bn0\.", "embeddings.batchnorm."),
    (r"_conv_head\.", "encoder.top_conv."),
    (r"_bn1\.", "encoder.top_bn."),
    (r"_blocks\.(\d+)\._expand_conv\.", r"encoder.blocks.\1.expansion.expand_conv."),
    (r"_blocks\.(\d+)\._depthwise_conv\.", r"encoder.blocks.\1.depthwise_conv.depthwise_conv."),
    (r"_blocks\.(\d+)\._bn1\.", r"encoder.blocks.\1.depthwise_conv.depthwise_norm."),
    (r"_blocks\.(\d+)\._project_conv\.", r"encoder.blocks.\1.projection.project_conv."),
    (r"_blocks\.(\d+)\._bn2\.", r"encoder.blocks.\1.projection.project_bn."),
    # The first block doesn't expand, and the package numbers its norms like the others'.
    (r"_blocks\.(\d+)\._bn0\.", r"encoder.blocks.\1.expansion.expand_bn."),
)


def config(image_size: int) -> EfficientNetConfig:
    """Settings of EfficientNet-lite0 for square images of that many pixels a side.

    Lite0 is B0 with ReLU6 and without squeeze-and-excitation, which transformers' class always has:
    it is made as small as can be, and `tower` holds its gates open.
    """
    settings: dict[str, Any] = {
        "image_size": image_size,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "squeeze_expansion_ratio": 1e-3,
        "hidden_act": "relu6",
        "hidden_dim": WIDTH,
        "hidden_size": WIDTH,  # what FastVLM's projector reads
    }
    return EfficientNetConfig(**settings)


def tower_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under the names of transformers' class, the classifier left out.

    Args:
        weights: As the package names them.

    Raises:
        ValueError: A tensor has no place.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("_fc."):
            continue
        for pattern, place in _PLACES:
            if match := re.match(pattern, name):
                found[match.expand(place) + name[match.end() :]] = value
                break
        else:
            raise ValueError(f"the vision package's tensor {name} has no place in EfficientNet")
    return found


def tower(weights: Mapping[str, Tensor], image_size: int) -> EfficientNetModel:
    """The vision tower, in float32 and evaluation mode.

    Args:
        weights: As the package names them.
        image_size: Side of its images, in pixels: a multiple of 32.

    Raises:
        ValueError: Tensors have no place, or places no tensor.
    """
    made = EfficientNetModel(config(image_size))
    named = tower_weights(weights)
    for key, value in made.state_dict().items():
        if ".squeeze_excite." in key:
            opened = key.endswith("expand.bias")
            named[key] = torch.full_like(value, _OPEN if opened else 0.0)
    made.load_state_dict(named, strict=True)
    made.eval()
    return made


def imagenet_head(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The ImageNet classifier on a cell's features, which the assembled model doesn't hold.

    Returns:
        Its weight (1000, 1280) and its bias (1000,), float32.
    """
    return weights["_fc.weight"], weights["_fc.bias"]
