"""Literal forms: what a method does to explicit attention maps, as its formula reads.

What the fused forms give has to equal this. `regaze.hooks.literal_runs` runs a model so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.hooks.literal_scores import ScoreForm
from regaze.hooks.passes import Picture


@dataclass(frozen=True)
class Map:
    """The meaning of the rows and columns of a layer's whole attention map.

    Q rows of the block that is read now, K columns of all that was read or generated so far.

    Attributes:
        layer: Layer index.
        seen: Bool "1 1 Q K": what the model's own mask shows to each row.
        image: Bool "1 1 1 K": image patches.
        system: Bool "1 1 1 K": text before the first image.
        structure: Bool "1 1 1 K": row ends and tile marks inside images.
        prompt: Bool "1 1 1 K": what was read, not generated.
        text: Bool "1 1 Q 1": text rows after an image, generated ones included.
        last: Bool "1 1 Q 1": the row that predicts the next token, if there is an image.
        hidden: "1 K E": the residual stream that enters the layer, of all columns.
    """

    layer: int
    seen: Tensor
    image: Tensor
    system: Tensor
    structure: Tensor
    prompt: Tensor
    text: Tensor
    last: Tensor
    hidden: Tensor


def _same(scores: Tensor, map_: Map) -> Tensor:
    return scores


def reweighed(scores: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Scores of weights ``new`` where they were those of ``old``; rows of neither need sum to 1.

    They aren't shifted by a norm's logarithm, because forms behind may look at scores themselves.
    """
    return scores + torch.where(old > 0, new / old, 1.0).log()


@dataclass(frozen=True)
class MapForm:
    """A method that edits attention maps.

    Attributes:
        layers: Layers whose maps are edited.
        edit: ``edit(scores, map)``: scaled logits "1 H Q K" (float32, before the mask) to edited
            ones; what isn't seen stays so.
        weigh: ``weigh(weights, scores, map)``: softmax weights "1 H Q K", and the scores that they
            were made of, to edited weights, whose rows needn't sum to 1.
    """

    layers: Collection[int]
    edit: Callable[[Tensor, Map], Tensor] = _same
    weigh: Callable[[Tensor, Tensor, Map], Tensor] | None = None


@dataclass(frozen=True)
class OutputForm:
    """A method that edits what heads put out, behind all edits of their maps.

    Attributes:
        layers: Layers whose heads' outputs are edited.
        edit: ``edit(outputs, map)``: "1 H Q D" in float32, before the output projection.
    """

    layers: Collection[int]
    edit: Callable[[Tensor, Map], Tensor]


@dataclass(frozen=True)
class HeadForm:
    """A method that scales heads by how they react to the image, one layer after the other.

    Attributes:
        layers: Layers whose heads are scaled.
        factors: ``factors(seen, blind)``: from the heads' outputs at the prompt's last position,
            "H D" each, with and without the image, to one factor per head, "H".
        removed: Way of removing the image: its tokens are taken out of the prompt ("drop"), or
            hidden in their places ("mask").
    """

    layers: Collection[int]
    factors: Callable[[Tensor, Tensor], Tensor]
    removed: Literal["drop", "mask"] = "drop"


@dataclass(frozen=True)
class Probe:
    """The findings of a run of the plain prompt.

    Attributes:
        scores: "1 V", of the last row.
        weights: Attention weights of each layer asked for, "1 H Q K".
        ahead: For each decode step on the likeliest tokens, as many as were asked for unless the
            answer ends before, the same "1 H 1 K".
        ids: The prompt's token ids.
        image: Mask of the prompt's columns that are image patches.
        structure: Mask of the prompt's columns that are row ends and tile marks inside images.
        processor: The model's processor, if it is known.
        pictures: Pictures that the vision tower was given, if it was looked at.
        eyes: Number of the vision tower's layers.
        maps: Weights "H R N" of the vision tower's rows, by layer and picture.
    """

    scores: Tensor
    weights: Mapping[int, Tensor]
    ids: Sequence[int]
    image: Sequence[bool]
    structure: Sequence[bool]
    processor: Any
    pictures: Sequence[Picture] = ()
    eyes: int = 0
    maps: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    ahead: Sequence[Mapping[int, Tensor]] = ()

    def seen_by(self, layer: int, picture: int) -> Tensor:
        """Weights "H R N" of the vision tower's rows."""
        return self.maps[layer, picture]


@dataclass(frozen=True)
class ProbeForm:
    """A method that runs the whole prompt before it says what it does to it.

    Beside other methods it reads what they leave, at its place in their order.

    Attributes:
        act: ``act(probe)``: what it then does in a second run of the prompt.
        layers: Layers whose maps it looks at.
        looks_at: Rows of the vision tower that it looks at.
        looks_ahead: Number of tokens that it lets the plain model answer greedily.
        again: True if the last row then runs again: nothing else in the first run knows of it.
    """

    act: Callable[[Probe], MapForm]
    layers: Collection[int] = ()
    looks_at: Literal["class", "all"] | None = None
    looks_ahead: int = 0
    again: bool = False


Form = MapForm | OutputForm | HeadForm | ScoreForm | ProbeForm
