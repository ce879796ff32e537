"""Vision towers of the tiny models: run, and let attend by explicit maps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import vision_maps
from tiny import FAMILIES, Tiny
from torch import Tensor
from vision_maps import Change

from regaze.hooks import Edit
from regaze.hooks.families import FAMILIES as KNOWN
from regaze.hooks.host import find_host
from regaze.hooks.passes import Pass

SEEING = tuple(family for family in FAMILIES if not KNOWN[family].refuse)
CLASS = ("llava", "llava_next", "internvl", "instructblip")
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3")
MAPPED = tuple(family for family in SEEING if "qwen" not in family)
"""Families whose vision towers can return their maps."""


def eye(model: Tiny) -> Any:
    return find_host(model.model, model.processor).eye


def sizes(model: Tiny, inputs: dict[str, Any]) -> list[int]:
    """Patches of each picture in a packed sequence."""
    if "image_grid_thw" in inputs:
        return [int(t * h * w) for t, h, w in inputs["image_grid_thw"]]
    if model.family == "mistral3":
        return [int(h // 4 * (w // 4)) for h, w in inputs["image_sizes"]]
    return []


def explicitly(
    model: Tiny, inputs: dict[str, Any], change: Change = lambda layer, z, first: z
) -> AbstractContextManager[dict[int, list[Tensor]]]:
    """Let the vision tower attend by explicit maps, changed."""
    return vision_maps.explicitly(eye(model), sizes(model, inputs), change)


@torch.no_grad()
def run(model: Tiny, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The vision tower's output, "N E" of all pictures, and the model's logits."""
    found: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append(output.last_hidden_state.flatten(0, -2))

    handle = eye(model).tower.register_forward_hook(keep)
    out = model.model(**inputs).logits
    handle.remove()
    (seen,) = found
    return seen, out


class Scale(Edit):
    """Heads get factors of their own."""

    tower = "vision"

    def __init__(self) -> None:
        super().__init__((0, 1))

    def scale_heads(self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass) -> Tensor:
        assert null is None
        return torch.arange(1, out.shape[2] + 1).float().expand(out.shape[0], -1) / 2 + layer
