"""The differences between vision towers: one entry per class, whichever families have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Vision:
    """The facts about vision towers of one class: their attention, and the layout of pictures.

    Attributes:
        layers: Path from the tower to the list of its layers.
        attention: A layer's attention module.
        layout: "batch": each picture is a batch row, patches in reading order, as many as
            ``pixel_values`` and the patch size make; "grids": all patches in one sequence, blocks
            that are merged later side by side, by ``grid_thw``; attention is called for each frame;
            "windows": likewise, sorted by window, and called for each window in some layers;
            "packed": all patches in one sequence, in reading order, by ``image_sizes``; a mask
            keeps pictures apart.
        class_token: True if a class token stands before the patches.
    """

    layers: str
    attention: str = "self_attn"
    layout: Literal["batch", "grids", "windows", "packed"] = "batch"
    class_token: bool = False


VISION: dict[str, Vision] = {
    "Blip2VisionModel": Vision("encoder.layers", class_token=True),
    "CLIPVisionModel": Vision("encoder.layers", class_token=True),
    "Exaone4_5_VisionModel": Vision("blocks", "attn", "windows"),
    "Glm4vMoeVisionModel": Vision("blocks", "attn", "grids"),
    "Glm4vVisionModel": Vision("blocks", "attn", "grids"),
    "GlmOcrVisionModel": Vision("blocks", "attn", "grids"),
    "Idefics2VisionTransformer": Vision("encoder.layers"),
    "Idefics3VisionTransformer": Vision("encoder.layers"),
    "InstructBlipVideoVisionModel": Vision("encoder.layers", class_token=True),
    "InstructBlipVisionModel": Vision("encoder.layers", class_token=True),
    "InternVLVisionModel": Vision("encoder.layer", "attention", class_token=True),
    "JanusVisionModel": Vision("encoder.layers"),
    "PixtralVisionModel": Vision("transformer.layers", "attention", "packed"),
    "Qwen2VisionTransformerPretrainedModel": Vision("blocks", "attn", "grids"),
    "Qwen2_5OmniVisionEncoder": Vision("blocks", "attn", "windows"),
    "Qwen2_5_VisionTransformerPretrainedModel": Vision("blocks", "attn", "windows"),
    "Qwen3OmniMoeVisionEncoder": Vision("blocks", "attn", "grids"),
    "Qwen3VLMoeVisionModel": Vision("blocks", "attn", "grids"),
    "Qwen3VLVisionModel": Vision("blocks", "attn", "grids"),
    "Qwen3_5MoeVisionModel": Vision("blocks", "attn", "grids"),
    "Qwen3_5VisionModel": Vision("blocks", "attn", "grids"),
    "SiglipVisionModel": Vision("encoder.layers"),
    "SmolVLMVisionTransformer": Vision("encoder.layers"),
}
"""Vision towers by class. One that isn't here can be neither edited nor looked at."""
