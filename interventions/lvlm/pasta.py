"""PASTA: look at this span, in chosen heads.

In the listed heads, every row, decoded rows included, with a a row's weights over the prompt's
columns and S the columns that are pointed at:

    exclude     a_j <- alpha a_j on prompt columns outside S      (alpha < 1; the paper)
    include     a_j <- alpha a_j on S                             (alpha > 1)
    generation  a_j <- alpha a_j on all prompt columns            (what was generated gains)

and the row renormalised: log alpha on those columns' logits. Generated columns keep theirs. Zhang
et al., arXiv 2311.02262, section 3; reference code QingruZhang/PASTA@56a9138.

Several spans are one set here. The code applies each in turn (``sense="code"``): with n spans,
exclude multiplies by alpha^n outside and alpha^(n-1) inside, so all of the prompt loses against
generated text, and include first multiplies its span and then divides the whole prompt, so that it
is the rest that loses. Rows before a span see one and the same factor everywhere and stay as they
are, so they aren't run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Pass
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_patches
from regaze.interventions.lvlm.heads import (
    Heads,
    by_layer,
    check_heads,
    check_listed,
    choose_heads,
    head_masks,
    other_heads,
)
from regaze.interventions.lvlm.span_edit import SpanEdit
from regaze.interventions.lvlm.spans import (
    IMAGE,
    Spans,
    check_pointed,
    check_spans,
    find_spans,
    need_spans,
    points_at_text,
)

Mode = Literal["exclude", "include", "generation"]


@register
@dataclass(frozen=True)
class PASTA(Intervention):
    """Steer listed heads towards spans of the prompt.

    Attributes:
        spans: Spans to look at: texts of the prompt, [start,end] ranges of its columns (without
            padding), or "<image>" for the image. A text means its first occurrence.
        heads: Pairs (layer, head), found for this very model by `regaze.rank_heads`; or "all".
            No lists were published for vision-language models.
        layers: Layers to edit; by default those of the heads. Without heads, all heads of these.
        alpha: Factor of the weights, above 0; 1 is a no-op.
        mode: Columns whose weights are multiplied, the span's or the others'; see above.
        sense: The way several spans add up: "union", or as in the released "code".
        take: "listed" heads, or as a control as many "others" of the same layers.
    """

    name: ClassVar[str] = "pasta"
    summary: ClassVar[str] = "steer chosen heads towards a span of the prompt"
    paper: ClassVar[str] = "arXiv 2311.02262"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"alpha": 0.01, "mode": "exclude"},
            "arXiv 2311.02262, section 4; QingruZhang/PASTA@56a9138: alpha 0.01, exclude",
        ),
    }

    spans: Spans = ()
    heads: Heads | None = None
    layers: tuple[int, ...] | None = None
    alpha: float = 0.01
    mode: Mode = "exclude"
    sense: Literal["union", "code"] = "union"
    take: Literal["listed", "others"] = "listed"

    @property
    def shares_prefix(self) -> bool:
        """False with texts, which a beginning may not hold yet."""
        return not points_at_text(self.spans)

    def check(self) -> None:
        """Check the fields' domains."""
        check_spans("pasta", self.spans)
        check_heads("pasta", self.heads)
        check_number("pasta", "alpha", self.alpha, low=1e-6, high=1e6)
        check_choice("pasta", "mode", self.mode, ("exclude", "include", "generation"))
        check_choice("pasta", "sense", self.sense, ("union", "code"))
        check_choice("pasta", "take", self.take, ("listed", "others"))

    def controls(self) -> Mapping[str, Intervention]:
        """Name the control: as many other heads of the same layers."""
        if self.take != "listed" or not isinstance(self.heads, tuple) or not self.heads:
            return {}
        return {"other heads": replace(self, take="others")}

    def idle(self) -> PASTA:
        """The same with weights multiplied by 1."""
        return replace(self, alpha=1.0)

    def literal(self) -> MapForm | None:
        """The weights times alpha, each row renormalised; None for texts and for controls."""
        if points_at_text(self.spans) or self.take != "listed":
            return None

        def edit(z: Tensor, m: Map) -> Tensor:
            inside = []
            for span in self.spans:
                marked = (
                    m.image[0, 0, 0].clone()
                    if span == IMAGE
                    else torch.zeros_like(m.image)[0, 0, 0]
                )
                if not isinstance(span, str):
                    marked[span[0] : span[1]] = True
                inside.append(marked)
            if not any(bool(marked.any()) for marked in inside):
                return z
            prompt = m.prompt[0, 0, 0]
            factor = torch.ones(z.shape[-1], dtype=torch.float32, device="cpu")
            every = torch.stack(inside).any(0)
            for marked in [every] if self.sense == "union" else inside:
                if self.mode == "exclude":
                    factor[prompt & ~marked] *= self.alpha
                elif self.mode == "generation":
                    factor[prompt] *= self.alpha
                else:
                    factor[marked] *= self.alpha
            if self.mode == "include" and self.sense == "code":
                factor[prompt] /= self.alpha
            z = z.clone()
            for head in range(z.shape[1]):
                if self.heads == "all" or (m.layer, head) in (self.heads or ()):
                    z[:, head] += factor.log()
            return z

        return MapForm(self.layers or (), edit)

    def check_given(self) -> None:
        """Check that spans and heads are given."""
        check_pointed("pasta", self.spans)
        check_listed("pasta", self.heads, self.layers)

    def resolve(self, host: Host) -> PASTA:
        """Check the spans and heads, and fill in the heads' layers."""
        if IMAGE in self.spans:
            require_patches("PASTA", host)
        need_spans("pasta", host, self.spans)
        heads, layers = choose_heads("pasta", host, self.heads, self.layers)
        return replace(self, heads=heads, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if alpha is 1."""
        return _PASTAEdit(self, host)


class _PASTAEdit(SpanEdit):
    def __init__(self, spec: PASTA, host: Host) -> None:
        found = by_layer(spec.heads or (), spec.layers or (), host.n_heads)
        if spec.take == "others":
            found = other_heads(found, host.n_heads)
        masks = head_masks(found if spec.alpha != 1 else {}, host.n_heads)
        super().__init__(spec.spans, {layer: mask[:, 0, 0] for layer, mask in masks.items()})
        self.spec, self.host = spec, host

    def biased(self, pass_: Pass) -> Tensor:
        spec = self.spec
        inside = find_spans("pasta", self.host, spec.spans, pass_)
        prompt = ~pass_.tokens.is_kind(Kind.GENERATED)[:, : inside.shape[-1]]
        return span_bias(inside, prompt, spec.alpha, spec.mode, spec.sense)


def span_bias(
    inside: Tensor, prompt: Tensor, alpha: float, mode: Mode = "exclude", sense: str = "union"
) -> Tensor:
    """Logit bias of each column.

    Args:
        inside: "B S P" bool: the spans.
        prompt: "B P" bool: columns of the prompt, padding (which nothing sees) included.
        alpha: Factor of the weights.
        mode: Columns whose weights are multiplied.
        sense: The way several spans add up: "union" or "code".

    Returns:
        "B P" float32; nothing for samples of which nothing is inside.
    """
    pointed = inside.flatten(1).any(1)
    if sense == "union":
        inside = inside.any(1, keepdim=True)
    spans = inside.shape[1]
    log = math.log(alpha)
    within = inside.sum(1).float()
    if mode == "exclude":
        bias = log * (spans - within)
    elif mode == "generation":
        bias = torch.full_like(within, log * spans)
    else:
        bias = log * (within - 1) if sense == "code" else log * within
    return bias * (prompt & pointed[:, None])
