"""Effect of a picture's patches on the first token of an answer, by a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.attach import attach
from regaze.hooks.capture import Capture, capture
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention
from regaze.interventions.lvlm.vicrop_maps import by_patch, gradient_map, likeliest


def read_gradient(
    model: Any, processor: Any, layer: int, by: Literal["attention", "pixels"], inputs: Any
) -> tuple[NDArray[np.float32], int]:
    """Read one prompt with one picture.

    The pass keeps what its backward pass needs: much memory, where parameters want gradients.

    Args:
        model: The model.
        processor: Processor of the model.
        layer: The layer whose attention is read.
        by: "attention" gives the predicting row's attention times its positive gradient, mean over
            heads; "pixels" the gradient by each pixel, norm over colours.
        inputs: The model's inputs.

    Returns:
        "1 1 rows cols", of pixels "1 1 rows cols P"; and the likeliest token.

    Raises:
        ValueError: There isn't one picture, or by pixels: it isn't one tensor "1 3 height width" of
            square patches.
    """
    leaf = _Leaf(layer)
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as held:
        seen = held.enter_context(
            capture(model, "last", [layer], heads="mean", processor=processor)
        )
        given = dict(inputs)
        if by == "pixels":
            given["pixel_values"] = _pixels(inputs)
        else:
            held.enter_context(attach(model, leaf, processor=processor))
        scores = model(**given, logits_to_keep=1).logits[0, -1]
        grid = _grid(seen, inputs)
        if by == "pixels":
            (gradient,) = torch.autograd.grad(likeliest(scores), given["pixel_values"])
            found = _by_patch(gradient[0].float().norm(dim=0), *grid.shape)
        else:
            weighed = gradient_map(leaf.weights, scores)[0, :, -1].mean(0)
            found = weighed[grid - seen.captured[0].offset]
    return found.float().cpu().numpy()[None, None], int(scores.argmax())


def _grid(seen: Capture, inputs: Mapping[str, Any]) -> Tensor:
    count = 0 if seen.tokens is None else seen.tokens.n_images(0)
    if count != 1:
        raise ValueError(
            f"looking closer takes one image, and this prompt has {count}: ask about one at a time"
        )
    return seen.grid(0, 0, inputs)


def _pixels(inputs: Mapping[str, Any]) -> Tensor:
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != 1:
        shape = list(getattr(pixels, "shape", ()))
        raise ValueError(
            "the gradient by pixels takes a picture that is one tensor [1, 3, height, width], as "
            f"LLaVA-1.5's is, and this processor makes {shape}: take form=gradient or relative"
        )
    return pixels.detach().clone().requires_grad_()


def _by_patch(pixels: Tensor, rows: int, cols: int) -> Tensor:
    side = math.gcd(pixels.shape[0] // rows, pixels.shape[1] // cols)
    if pixels.shape != (rows * side, cols * side):
        raise ValueError(
            f"{rows} x {cols} patches don't divide {list(pixels.shape)} pixels into squares, so "
            "their gradient can't be told by patch: take form=gradient or relative"
        )
    return torch.from_numpy(by_patch(pixels.detach().cpu().numpy(), side))


class _Leaf:
    """Makes the predicting row's weights at a layer a leaf of the graph; for `attach`."""

    label, acts_on = "attention gradient", Intervention.acts_on

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self.weights = torch.empty(0)

    def resolve(self, host: Host) -> _Leaf:
        return self

    def bind(self, host: Host) -> Edit:
        return _LeafEdit(self, self._layer)


class _LeafEdit(Edit):
    rows = "last"

    def __init__(self, told: _Leaf, layer: int) -> None:
        super().__init__([layer])
        self.given = told

    def edit_weights(self, layer: int, weights: Tensor, logits: Tensor, columns: Columns) -> Tensor:
        self.given.weights = weights.detach().requires_grad_()
        return self.given.weights
