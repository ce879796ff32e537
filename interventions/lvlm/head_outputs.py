"""Read what heads put out: the vectors of `Patch` and `Steer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.attach import seat_of
from regaze.hooks.capture import Capturing
from regaze.hooks.checks import check_indices
from regaze.hooks.edits import Edit
from regaze.hooks.host import find_host
from regaze.hooks.passes import Columns
from regaze.hooks.targets import split_target
from regaze.interventions.lvlm.tool import Vectors


class _Reading(Edit):
    rows = "last"

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.found: dict[int, Tensor] = {}

    def fork(self) -> Edit:
        return self

    def edit_outputs(self, layer: int, out: Tensor, columns: Columns) -> Tensor:
        self.found[layer] = out[0, -1].detach().cpu()
        return out


@torch.no_grad()
def head_outputs(
    model: Any, inputs: Any, heads: Sequence[tuple[int, int]], processor: Any = None
) -> Vectors:
    """Read the outputs of heads at the last row of a prompt with a picture: `Patch`'s ``vectors``.

    Args:
        model: The model.
        inputs: One prompt, as for its ``forward``.
        heads: [layer, head] pairs.
        processor: The model's processor, where `regaze.attach` needs it.

    Raises:
        ValueError: The prompt has no image, or a head doesn't exist.
    """
    model, processor = split_target(model, processor)
    host = find_host(model, processor)
    layers = sorted({int(layer) for layer, _ in heads})
    check_indices("head_outputs", "heads", tuple(layers), host.n_layers, "the model")
    with Capturing(seat_of(host), reading := _Reading(layers), reading):
        model(**inputs)
    if not reading.found:
        raise ValueError("the prompt has no image, so there is no row to read")
    return tuple(tuple(reading.found[layer][head].tolist()) for layer, head in heads)
