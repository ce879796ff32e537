"""ScalingVis and AdaptVis: sharpen or flatten what the prompt's last row sees of the image.

On scaled logits z of the prompt's last row alone, image columns j, every head and layer:

    z_j <- w z_j

so w > 1 sharpens attention among patches and w < 1 flattens it (the image's whole share changes
too, by the logits' sign). Rows of generated tokens are never edited. ScalingVis has one w; AdaptVis
runs the prompt unedited, takes the probability c of the likeliest first token, rounded to two
decimals, and then w1 if c < threshold, else w2, for the answer.

Chen et al., arXiv 2503.01773; shiqichen17/AdaptVis@3b41399. There AdaptVis generates twice; here
only the prompt's last row is run again, which gives the same. Not followed: the runner for VSR
compares the largest raw logit with the threshold, which practically always gives w2, and image
columns are those from the first to the last image token of a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm, Probe, ProbeForm
from regaze.hooks.passes import Columns, Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_again, require_patches

_SOURCE = "shiqichen17/AdaptVis@3b41399, README's example"


@register
@dataclass(frozen=True)
class ScalingVis(Intervention):
    """Scale the image logits of the prompt's last row by one weight.

    Attributes:
        weight: w; the paper tries 0, 0.5, 0.8, 1.2, 1.5 and 2 and picks one for each data set, so
            no default is right everywhere. 1 is a no-op.
        layers: Layers to edit; all by default, as in the code.
    """

    name: ClassVar[str] = "scalingvis"
    summary: ClassVar[str] = "scale image logits at the prompt's last row"
    paper: ClassVar[str] = "arXiv 2503.01773"

    weight: float = 0.5
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("scalingvis", "weight", self.weight, low=0, high=100)

    def controls(self) -> Mapping[str, Intervention]:
        """The weight mirrored at 1; of those below it alone, because a control has none itself."""
        if not 0 < self.weight < 1:
            return {}
        return {"flipped sign": replace(self, weight=round(2 - self.weight, 9))}

    def idle(self) -> ScalingVis:
        """The same with a weight of 1."""
        return replace(self, weight=1.0)

    def literal(self) -> MapForm:
        """``w z`` at the image columns of the prompt's last row."""
        return _literal(self.layers or (), self.weight)

    def resolve(self, host: Host) -> ScalingVis:
        """Choose the layers."""
        require_patches("ScalingVis", host)
        default = range(len(host.sites))
        return replace(self, layers=choose_layers("scalingvis", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if the weight is 1."""
        return _Scale(self.layers or () if self.weight != 1 else (), self.weight)


@register
@dataclass(frozen=True)
class AdaptVis(Intervention):
    """Scale the image logits of the prompt's last row by how sure the model is.

    The threshold and the weights were picked on a fifth of each data set.

    Attributes:
        unsure: w where the first token's probability is below the threshold; 0.5 or 0.8.
        sure: w elsewhere; 1.2, 1.5 or 2.
        threshold: Probability of the likeliest first token from which on the model counts as sure;
            0.3 to 0.4 in the paper.
        layers: Layers to edit; all by default, as in the code.
    """

    name: ClassVar[str] = "adaptvis"
    summary: ClassVar[str] = "flatten attention on the image if unsure, else sharpen it"
    paper: ClassVar[str] = "arXiv 2503.01773"
    presets: ClassVar[Mapping[str, Preset]] = {
        "whatsup": Preset({"unsure": 0.5, "sure": 1.5, "threshold": 0.4}, _SOURCE)
    }

    unsure: float = 0.5
    sure: float = 1.5
    threshold: float = 0.4
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("adaptvis", "unsure", self.unsure, low=0, high=100)
        check_number("adaptvis", "sure", self.sure, low=0, high=100)
        check_number("adaptvis", "threshold", self.threshold, low=0, high=1.01)

    def controls(self) -> Mapping[str, Intervention]:
        """The two weights exchanged; of a spec that sharpens if unsure none, as it is one."""
        if self.unsure >= self.sure:
            return {}
        return {"exchanged weights": replace(self, unsure=self.sure, sure=self.unsure)}

    def idle(self) -> AdaptVis:
        """The same with both weights 1."""
        return replace(self, unsure=1.0, sure=1.0)

    def literal(self) -> ProbeForm:
        """The prompt as it is, then ``w z`` at the image columns of its last row."""

        def act(seen: Probe) -> MapForm:
            likeliest = round(float(seen.scores.softmax(-1).max()), 2)
            weight = self.unsure if likeliest < self.threshold else self.sure
            return _literal(self.layers or (), weight)

        return ProbeForm(act, again=True)

    def resolve(self, host: Host) -> AdaptVis:
        """Choose the layers.

        Raises:
            ValueError: The last row of this model's prompts can't be run again alone.
        """
        require_patches("AdaptVis", host)
        require_again("AdaptVis", host)
        default = range(len(host.sites))
        return replace(self, layers=choose_layers("adaptvis", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if both weights are 1."""
        acts = self.unsure != 1 or self.sure != 1
        return _Scale(self.layers or () if acts else (), self)


def _literal(layers: Sequence[int], weight: float) -> MapForm:
    def edit(z: Tensor, m: Map) -> Tensor:
        read = m.prompt[..., -z.shape[-2] :].transpose(-1, -2)  # Rows that were not generated.
        return torch.where(m.last & read & m.image, weight * z, z)

    return MapForm(layers, edit)


class _Scale(Edit):
    """Scales by a given weight, or by one chosen when the prompt has been read."""

    rows = "last"

    def __init__(self, layers: Sequence[int], by: float | AdaptVis) -> None:
        super().__init__(layers)
        self.by = by
        self.fixed = by if isinstance(by, int | float) else 1.0
        self.weights: Tensor | None = None

    def begin(self, pass_: Pass) -> None:
        self.weights = None

    def active(self, layer: int, pass_: Pass) -> bool:
        # Drafts of assisted decoding stand behind a prompt's last row, and aren't edited.
        if isinstance(self.by, AdaptVis) or pass_.n_last > 1:
            return pass_.again
        return pass_.tokens.generated == 0

    def look_back(self, scores: Tensor, pass_: Pass) -> Tensor | None:
        if isinstance(self.by, AdaptVis):
            spec = self.by
            weights = choose_weights(scores, spec.threshold, spec.unsure, spec.sure)
        elif pass_.n_last > 1:
            weights = scores.new_full((len(scores),), self.fixed)
        else:
            return None
        self.weights = weights
        return weights != 1

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        if self.weights is None:  # One for all.
            return scale_image(logits, columns.image, self.fixed)
        weights = self.weights.to(logits.device)[:, None, None, None]
        row = torch.arange(logits.shape[2], device=logits.device) == 0
        return scale_image(logits, columns.image & row[:, None], weights)


def scale_image(logits: Tensor, image: Tensor, weight: float | Tensor) -> Tensor:
    """Multiply logits on image columns.

    Args:
        logits: "... K".
        image: Bool, broadcastable to the logits.
        weight: w, or one for each sample, broadcastable likewise.
    """
    return torch.where(image, logits * weight, logits)


def choose_weights(scores: Tensor, threshold: float, unsure: float, sure: float) -> Tensor:
    """AdaptVis's weight of each sample, "B".

    Args:
        scores: "B V" logits of the first token.
        threshold: Least probability of the likeliest token, rounded to two decimals, to be sure.
        unsure: The weight below the threshold.
        sure: The weight at and above the threshold.
    """
    likeliest = (100 * scores.softmax(-1).amax(-1)).round() / 100
    below = likeliest.double() < threshold - 1e-7
    return torch.full_like(likeliest, sure, dtype=torch.float32).masked_fill(below, unsure)
