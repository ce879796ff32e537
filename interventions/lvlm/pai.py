"""PAI: pay more attention to the image, at the row that predicts the next token.

On scaled logits z of the last row, image columns j, every head:

    z_j <- z_j + alpha |z_j|

Liu et al., arXiv 2407.21771, section 3.2; reference code LALBJ/PAI@9bbd8bd (attention.py). The
absolute value matters: scaling a negative logit would lower its attention. The paper's second
half contrasts next-token scores with those of the prompt without its image (section 3.3): a second
run of the model, `regaze.interventions.lvlm.contrasts.guide`, which ``gamma`` turns on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Columns, Pass
from regaze.hooks.second_runs import without_images
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.contrasts import guide, with_images


@register
@dataclass(frozen=True)
class PAI(Intervention):
    """Raise the last row's logits on image columns by a share of their size.

    Attributes:
        alpha: Share added, at least -1; 0 is a no-op and negative values look away (a control).
            The repository's README runs 0.2 for both POPE and CHAIR.
        layers: Layers to edit; by default all but the first two, as in the README (2 to 31 of 32).
        gamma: Strength of the contrast; 1 is none. The README runs 1.1. It costs a second run of
            the prompt's text and of each token.
        plausibility: With the contrast: tokens less likely than this share of the likeliest are
            never chosen; 0.1 in the code.
    """

    name: ClassVar[str] = "pai"
    summary: ClassVar[str] = "boost image logits at the predicting row"
    paper: ClassVar[str] = "arXiv 2407.21771"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"alpha": 0.2, "gamma": 1.1}, "LALBJ/PAI@9bbd8bd, README, as are the default layers"
        ),
    }

    alpha: float = 0.2
    layers: tuple[int, ...] | None = None
    gamma: float = 1.0
    plausibility: float = 0.1

    @property
    def shares_prefix(self) -> bool:
        """False with the contrast, which runs whole prompts twice."""
        return self.gamma == 1

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("pai", "alpha", self.alpha, low=-1, high=100)
        check_number("pai", "gamma", self.gamma, low=0, high=100)
        check_number("pai", "plausibility", self.plausibility, low=0, high=1)

    def controls(self) -> Mapping[str, Intervention]:
        """Looking away from the image by as much, as far as alpha allows."""
        return {"flipped sign": replace(self, alpha=-self.alpha)} if 0 < self.alpha <= 1 else {}

    def idle(self) -> PAI:
        """The same with nothing added."""
        return replace(self, alpha=0.0, gamma=1.0)

    def literal(self) -> tuple[MapForm | ScoreForm, ...]:
        """``z + alpha |z|`` at the last row's image columns, and the contrast of scores."""

        def edit(z: Tensor, m: Map) -> Tensor:
            return torch.where(m.last & m.image, z + self.alpha * abs(z), z)

        def combine(scores: Tensor, whole: Whole) -> Tensor:
            if not whole.has_image:
                return scores
            p, log_p = scores.softmax(-1), scores.log_softmax(-1)
            log_p_text = whole.without_image().log_softmax(-1)
            mixed = self.gamma * (log_p - log_p_text) + log_p_text
            unlikely = p < self.plausibility * p.amax(-1, keepdim=True)
            return mixed.masked_fill(unlikely, -torch.inf)

        form = MapForm(self.layers or (), edit)
        return (form,) if self.gamma == 1 else (form, ScoreForm(combine))

    def resolve(self, host: Host) -> PAI:
        """Choose the layers."""
        require_patches("PAI", host)
        default = range(min(2, len(host.sites) - 1), len(host.sites))
        return replace(self, layers=choose_layers("pai", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if alpha is 0, no second run if gamma is 1."""
        return _PAIEdit(self)


class _PAIEdit(Edit):
    rows = "last"

    def __init__(self, spec: PAI) -> None:
        super().__init__(spec.layers or () if spec.alpha else ())
        self.alpha = spec.alpha
        if spec.gamma != 1:
            self.branches = (Branch(without_images, functools.partial(_contrasted, spec)),)

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return boost_image(logits, columns.image, self.alpha)


def _contrasted(spec: PAI, scores: Tensor, text_scores: Tensor, pass_: Pass) -> Tensor:
    """The contrast where a prompt has an image; others keep their scores."""
    return with_images(guide(scores, text_scores, spec.gamma, spec.plausibility), scores, pass_)


def boost_image(logits: Tensor, image: Tensor, alpha: float) -> Tensor:
    """Add ``alpha |z|`` on image columns.

    Args:
        logits: "... K".
        image: Bool, broadcastable to the logits.
        alpha: Share added.
    """
    return torch.addcmul(logits, logits.abs(), image.to(logits.dtype), value=alpha)
