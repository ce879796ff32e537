"""M3ID: contrast next-token scores with those of the prompt without its image, more at each token.

With p the model's probabilities, p' those of the prompt without its image, and t the number of the
token, 1 for the first:

    s = log p + (1 - g) / g (log p - log p'),   g = exp(-rate t),   -inf where p < beta max p

Favero et al., arXiv 2403.14003, section 4. No code of the authors is known; this is the baseline in
AvisC's repository, sangminwoo/AvisC@772eba4. The factor is 0.02 at the first token, 1 at the 35th,
6.4 at the 100th, and has no bound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Pass
from regaze.hooks.second_runs import without_images
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_images, require_scores
from regaze.interventions.lvlm.contrasts import (
    CutEdit,
    guide,
    literal_cut,
    require_image,
    with_images,
)


@register
@dataclass(frozen=True)
class M3ID(Intervention):
    """Contrast with the prompt without its image, the more the longer the answer.

    Attributes:
        rate: Rate per token at which the image is assumed to be forgotten. 0 leaves the cut alone
            (a control), without a second run.
        beta: Tokens less likely than this share of the likeliest are never chosen; 0 cuts nothing.
    """

    name: ClassVar[str] = "m3id"
    summary: ClassVar[str] = "contrast scores with those without the image, more at each token"
    paper: ClassVar[str] = "arXiv 2403.14003"
    presets: ClassVar[Mapping[str, Preset]] = {
        "avisc": Preset({"rate": 0.02, "beta": 0.1}, "sangminwoo/AvisC@772eba4, as a baseline"),
    }

    rate: float = 0.02
    beta: float = 0.1

    @property
    def shares_prefix(self) -> bool:
        """True without a second run, which would read whole prompts."""
        return self.rate == 0

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("m3id", "rate", self.rate, low=0, high=1)
        check_number("m3id", "beta", self.beta, low=0, high=1)

    def controls(self) -> Mapping[str, Intervention]:
        """The cut alone: what is left of the gain comes from what is never chosen."""
        return {"cut only": replace(self, rate=0.0)} if self.rate and self.beta else {}

    def idle(self) -> M3ID:
        """The same without contrast or cut."""
        return replace(self, rate=0.0, beta=0.0)

    def literal(self) -> ScoreForm:
        """The formula, with a whole run of the text alone."""

        def edit(scores: Tensor, whole: Whole) -> Tensor:
            if not whole.has_image:
                return scores
            g = math.exp(-self.rate * (whole.generated.shape[1] + 1))
            log_p, log_p_text = scores.log_softmax(-1), whole.without_image().log_softmax(-1)
            mixed = log_p + (1 - g) / g * (log_p - log_p_text)
            return literal_cut(mixed, scores, self.beta)

        return ScoreForm(edit)

    def resolve(self, host: Host) -> M3ID:
        """Check that there can be pictures."""
        require_images("M3ID", host)
        require_scores("M3ID", host)
        return self

    def bind(self, host: Host) -> Edit:
        """Make the edit; no second run if the rate is 0."""
        return _M3IDEdit(self) if self.rate else CutEdit(self.beta)


class _M3IDEdit(Edit):
    def __init__(self, spec: M3ID) -> None:
        super().__init__(())
        self.branches = (Branch(_inputs, functools.partial(_combine, spec)),)


def _inputs(given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    require_image("m3id", pass_, "none")
    return without_images(given, pass_)


def _combine(spec: M3ID, scores: Tensor, text: Tensor, pass_: Pass) -> Tensor:
    number = token_numbers(pass_, scores.shape[1]).to(scores.device)
    gamma = (spec.rate * number[..., None].float()).exp()
    return with_images(guide(scores, text, gamma, spec.beta), scores, pass_)


def token_numbers(pass_: Pass, rows: int) -> Tensor:
    """The number of the answer's token that each of the last rows predicts, "B R" from 1."""
    kinds = pass_.tokens.kinds
    read = ~((kinds == Kind.GENERATED) | (kinds == Kind.PAD))
    # An earlier answer, before another question, doesn't count.
    behind = read.flip(1).cumsum(1).flip(1) == 0
    known = (behind & (kinds == Kind.GENERATED)).sum(1) + pass_.tokens.generated
    return known[:, None] + 1 - torch.arange(rows - 1, -1, -1, device="cpu")
