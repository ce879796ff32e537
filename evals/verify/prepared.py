"""Values that methods are given for verification: words, masks, a flow, things to compose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from regaze.interventions import (
    NAG,
    ConsistEdit,
    FlowWarp,
    Intervention,
    PrimeComposer,
    Regions,
    Reweight,
    StructuredDiffusion,
)
from regaze.interventions.diffusion.concepts import ConceptUpdate

PROMPTS = ("a red circle and a blue square", "a square and a circle")
"""The prompts that are painted."""
SIDE = 256
"""Width and height in pixels, where the model allows it."""
FRAMES = 2
"""Frames of a clip."""

_WORDS = ("circle", "square")
_UNWANTED = "a white cross"
_STRENGTHS = ((1, 2.0), (3, 0.5))


def prepared(spec: Intervention, call: Mapping[str, Any], *, alone: bool) -> Intervention:
    """A spec with what it must be given of the prompt or the picture, if it has none.

    Args:
        spec: The method.
        call: Arguments of the pipeline's call.
        alone: True if the pipeline is asked for single pictures of `PROMPTS`.
    """
    if isinstance(spec, ConceptUpdate) and not spec.tokens and alone:
        return replace(spec, tokens=_WORDS)
    if isinstance(spec, StructuredDiffusion) and spec.phrases == "auto":
        return replace(spec, phrases=_WORDS)
    if isinstance(spec, ConsistEdit) and spec.mask is None and spec.source is None:
        # Half of the picture, which a literal form can know before it runs.
        return replace(spec, mask=_half(call.get("height"), call.get("width")))
    if isinstance(spec, NAG) and spec.negative is None and spec.embeddings is None:
        return replace(spec, negative=_UNWANTED) if alone else spec
    if isinstance(spec, Regions) and not spec.regions and alone:
        halves = ((0, 0, 0.5, 1), _WORDS[0]), ((0.5, 0.25, 1, 1), _WORDS[1])
        return replace(spec, regions=halves)
    if isinstance(spec, Reweight) and not spec.words:
        return replace(spec, words=_STRENGTHS)
    if isinstance(spec, PrimeComposer) and spec.latents is None and spec.background is None:
        return replace(spec, **_to_compose(int(call["height"]), int(call["width"])))
    if isinstance(spec, FlowWarp) and spec.flow is None:
        return replace(spec, flow=_drawn(int(call["height"]), int(call["width"])))
    return spec


def _half(height: int | None, width: int | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A mask of a picture's left half."""
    mask = np.zeros((height or SIDE, width or SIDE), bool)
    mask[:, : mask.shape[1] // 2] = True
    return mask


def _drawn(height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The flow of a clip of two frames: the left half moves, by its own vector in each patch."""
    flow = np.zeros((FRAMES - 1, height, width, 2), np.float32)
    cells = np.random.default_rng(0).uniform(-height / 4, height / 4, (8, 4, 2))
    patches = cells.repeat(height // 8, 0).repeat(width // 8, 1)
    flow[0, : patches.shape[0], : patches.shape[1]] = patches
    return flow


def _to_compose(height: int, width: int) -> dict[str, Any]:
    """A background in two colours, and a square in a third to put into it."""
    ground = np.full((height, width, 3), 40, np.uint8)
    ground[:, : width // 2] = (60, 120, 200)
    thing = np.full((height, width, 3), (200, 60, 60), np.uint8)
    box = (0.25, 0.25, 0.75, 0.75)
    return {"background": ground, "object": thing, "mask": box, "box": box, "subject": _WORDS[0]}
