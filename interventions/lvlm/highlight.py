"""Prompt Highlighter: attend to a span, and guide away from a run in which it is faint.

H are the columns of a span, in the text or the image. In every layer, head and row, w the weight:

    the run itself      z_j <- z_j + log w         on H
    the second run      z_j <- z_j - (2 + log w)   on H, whose embeddings are multiplied by 0.01
    scores              s (c - u) + u,  c and u log-probabilities of both runs

Zhang et al., arXiv 2312.04302, section 3; reference code dvlab-research/Prompt-Highlighter@2ebe97f
(highlighter_modules). What is generated isn't highlighted; rows before H stay as they are. The code
guides on probabilities by default and in its benchmarks (``space="probability"``), which orders
tokens but is no distribution to sample from, and on log-probabilities in its demos. It has no
plausibility cut; ``plausibility`` adds one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Pass
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.contrasts import cut
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

_CODE = "dvlab-research/Prompt-Highlighter@2ebe97f"
_EXTRA = 2.0  # What the second run's logits lose beside log w.


@register
@dataclass(frozen=True)
class PromptHighlighter(Intervention):
    """Raise a span's logits, and guide away from a run in which it is faint.

    Attributes:
        spans: Spans to highlight: texts of the prompt, [start,end] ranges of its columns (without
            padding), or "<image>". A text means its first occurrence.
        weight: w, above 0. The code's benchmarks run 3 (MMBench) and 2 (MME), its demos 5.
        scale: s, the guidance; 1 leaves the second run out. 1.3 in the benchmarks.
        perturb: Factor of the span's embeddings in the second run.
        space: Space of the guidance: "log" probabilities or on the "probability" itself.
        plausibility: Tokens less likely than this share of the likeliest are never chosen; 0, as
            in the code, cuts nothing.
        layers: Layers to edit; by default all, as in the code.
    """

    name: ClassVar[str] = "highlight"
    summary: ClassVar[str] = "attend to a span, and guide away from a run in which it is faint"
    paper: ClassVar[str] = "arXiv 2312.04302"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-13b-mmbench": Preset(
            {"weight": 3.0, "scale": 1.3, "space": "probability"}, f"{_CODE}, MMBench runner"
        ),
        "llava-1.5-13b-mme": Preset(
            {"weight": 2.0, "scale": 1.3, "space": "probability"}, f"{_CODE}, MME runner"
        ),
        "demo": Preset({"weight": 5.0, "scale": 1.5, "space": "log"}, f"{_CODE}, demos"),
    }

    spans: Spans = ()
    weight: float = 3.0
    scale: float = 1.3
    perturb: float = 0.01
    space: Literal["log", "probability"] = "log"
    plausibility: float = 0.0
    layers: tuple[int, ...] | None = None

    @property
    def shares_prefix(self) -> bool:
        """False with texts, which a beginning may not hold yet, and with a second run."""
        return self.scale == 1 and not points_at_text(self.spans)

    def check(self) -> None:
        """Check the fields' domains."""
        check_spans("highlight", self.spans)
        check_number("highlight", "weight", self.weight, low=1e-6, high=1e6)
        check_number("highlight", "scale", self.scale, low=0, high=100)
        check_number("highlight", "perturb", self.perturb, low=0, high=1)
        check_number("highlight", "plausibility", self.plausibility, low=0, high=1)
        check_choice("highlight", "space", self.space, ("log", "probability"))

    def idle(self) -> PromptHighlighter:
        """The same with the span's weights multiplied by 1, and without a second run."""
        return replace(self, weight=1.0, scale=1.0)

    def literal(self) -> tuple[MapForm | ScoreForm, ...] | None:
        """Biased maps, and a whole run of faint embeddings; None for texts."""
        if points_at_text(self.spans):
            return None
        layers = self.layers or ()

        def biased(columns: Any, added: float) -> MapForm:
            def edit(z: Tensor, m: Map) -> Tensor:
                z = z.clone()
                z[..., columns(m)] += added
                return z

            return MapForm(layers, edit)

        def inside(image: set[int]) -> list[int]:
            found = image if IMAGE in self.spans else set[int]()
            return sorted(found.union(*(range(*s) for s in self.spans if not isinstance(s, str))))

        def of_map(m: Map) -> list[int]:
            return inside(set(m.image.flatten().nonzero().flatten().tolist()))

        def guide(scores: Tensor, whole: Whole) -> Tensor:
            ids = whole.inputs["input_ids"][0].tolist()
            faint = inside({c for c, i in enumerate(ids) if i in whole.host.image_ids})
            if not faint:
                return scores

            def enter(given: Mapping[str, Any]) -> Mapping[str, Any]:
                mask = torch.zeros(given["inputs_embeds"].shape[:2], dtype=torch.bool, device="cpu")
                mask[0, faint] = True
                return shrunk(given, mask, self.perturb)

            form = biased(lambda m: faint, -_EXTRA - math.log(self.weight))
            other = whole.after(whole.inputs, enter, [form])
            p, q = scores.softmax(-1), other.softmax(-1)
            if self.space == "log":
                log_p, log_q = scores.log_softmax(-1), other.log_softmax(-1)
                mixed = self.scale * (log_p - log_q) + log_q
            else:
                mixed = self.scale * (p - q) + q
            return mixed.masked_fill(p < self.plausibility * p.amax(-1, keepdim=True), -torch.inf)

        form = biased(of_map, math.log(self.weight))
        return (form,) if self.scale == 1 else (form, ScoreForm(guide))

    def check_given(self) -> None:
        """Check that spans are given."""
        check_pointed("highlight", self.spans)

    def resolve(self, host: Host) -> PromptHighlighter:
        """Check the spans, and choose the layers."""
        if IMAGE in self.spans:
            require_patches("PromptHighlighter", host)
        need_spans("highlight", host, self.spans)
        layers = choose_layers("highlight", host, self.layers, range(len(host.sites)))
        return replace(self, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no second run if the scale is 1."""
        return _HighlightEdit(self, host)


class _BiasEdit(SpanEdit):
    """A bias on the spans' columns in all heads."""

    def __init__(self, spec: PromptHighlighter, host: Host, added: float) -> None:
        every = torch.ones(host.n_heads, dtype=torch.bool, device="cpu")
        super().__init__(spec.spans, dict.fromkeys(spec.layers or () if added else (), every))
        self.spec, self.host, self.added = spec, host, added

    def biased(self, pass_: Pass) -> Tensor:
        inside = find_spans("highlight", self.host, self.spec.spans, pass_).any(1)
        if self.branches and pass_.past and bool(inside[:, pass_.past :].any()):
            raise NotImplementedError(
                "highlight: a span came behind the beginning of the prompt, which the second run "
                "read without it: read the prompt in one block"
            )
        return self.added * inside.float()


class _HighlightEdit(_BiasEdit):
    def __init__(self, spec: PromptHighlighter, host: Host) -> None:
        added = math.log(spec.weight)
        super().__init__(spec, host, added)
        if spec.scale != 1:
            faint = _BiasEdit(spec, host, -_EXTRA - added)
            combine = functools.partial(_combine, spec)
            self.branches = (Branch(_same, combine, (faint,), self._enter),)

    def _enter(self, given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
        inside = find_spans("highlight", self.host, self.spec.spans, pass_).any(1)
        return shrunk(given, inside, self.spec.perturb)


def _same(given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    return given


def _combine(spec: PromptHighlighter, scores: Tensor, other: Tensor, pass_: Pass) -> Tensor:
    mixed = guided(scores, other, spec.scale, spec.space, spec.plausibility)
    if set(spec.spans) != {IMAGE}:
        return mixed
    # Without an image nothing is highlighted.
    has_image = pass_.tokens.has_image.to(scores.device)[:, None, None]
    return torch.where(has_image, mixed, scores)


def guided(
    scores: Tensor, other: Tensor, scale: float, space: str = "log", plausibility: float = 0.0
) -> Tensor:
    """``s (c - u) + u``, cut.

    Args:
        scores: Scores of the run itself, "... V".
        other: Scores of the second run, "... V".
        scale: s.
        space: The space of c and u: "log" probabilities or the "probability" itself.
        plausibility: Share of the likeliest token's probability, as in
            `regaze.interventions.lvlm.contrasts.cut`.
    """
    c, u = scores.log_softmax(-1), other.log_softmax(-1)
    mixed = scale * (c - u) + u if space == "log" else scale * (c.exp() - u.exp()) + u.exp()
    return cut(mixed, c, plausibility)


def shrunk(given: Mapping[str, Any], inside: Tensor, factor: float) -> dict[str, Any]:
    """A text tower's arguments with the embeddings of some columns "B P" multiplied.

    Raises:
        ValueError: The tower was given no embeddings.
    """
    embeds = given.get("inputs_embeds")
    if not isinstance(embeds, Tensor):
        raise ValueError(
            "highlight shrinks embeddings of the span, and the text tower was given none"
        )
    inside = inside.to(embeds.device)
    scaled = torch.where(inside[..., None], factor * embeds, embeds)
    found = {**given, "inputs_embeds": scaled}
    deep, where = given.get("deepstack_visual_embeds"), given.get("visual_pos_masks")
    if deep is not None and where is not None:
        # Qwen3-VL adds features of the picture to the first layers' outputs as well.
        faint = inside[where.to(inside.device)][:, None]
        found["deepstack_visual_embeds"] = [torch.where(faint, factor * x, x) for x in deep]
    return found
