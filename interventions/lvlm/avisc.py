"""AvisC: contrast next-token scores with those of an image of nothing but "blind" tokens.

Of the prompt's last row, a_l[j] are layer l's weights on image column j, mean over heads:

    layers: the fewest, largest first, whose share of all layers' image weight reaches gamma
    blind:  abar[j] >= mean(abar) + lam std(abar), abar the mean of a_l over those layers

A second run has the embeddings of all other image tokens set to zero (they keep their columns), and
with its scores l': s = (1 + alpha) l - alpha l', -inf where l < max l + log beta. Where l' holds a
NaN, l takes its place.

Woo et al., arXiv 2405.17820, section 3; reference code sangminwoo/AvisC@772eba4, which pools the
tokens of a batch and blanks its first sample alone; here each sample has its own. Weights are
taken in float32, so that tokens within float16's rounding of the bound may differ.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Branch, Edit
from regaze.hooks.host import Host
from regaze.hooks.literal_scores import ScoreForm, Whole
from regaze.hooks.passes import Columns, Pass, RowPlan
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_patches, require_scores
from regaze.interventions.lvlm.contrasts import (
    CutEdit,
    check_seed,
    contrasted,
    literal_cut,
    require_image,
)

Scheme = Literal["zeros", "ones", "noise"]
_CODE = "sangminwoo/AvisC@772eba4"


@register
@dataclass(frozen=True)
class AvisC(Intervention):
    """Contrast the image with those of its tokens that draw attention whatever is asked.

    Attributes:
        gamma: Share of the image's weight that the layers looked at hold, 0 to 1.
        lam: Standard deviations above the mean from which on a token is blind.
        alpha: Strength. 0 leaves the cut alone (a control), without a second run.
        beta: Tokens less likely than this share of the likeliest are never chosen; 0 cuts nothing.
        scheme: Replacement of the other tokens' embeddings.
        seed: Seed of the "noise" scheme.
    """

    name: ClassVar[str] = "avisc"
    summary: ClassVar[str] = "contrast scores with those of the image's blind tokens alone"
    paper: ClassVar[str] = "arXiv 2405.17820"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"gamma": 0.5, "lam": 1.0, "alpha": 2.5, "beta": 0.1},
            f"{_CODE}, shell scripts of AMBER and LLaVA-Bench",
        ),
        "llava-1.5-7b-pope": Preset(
            {"gamma": 0.5, "lam": 1.0, "alpha": 1.0, "beta": 0.1}, f"{_CODE}, defaults"
        ),
        "instructblip-pope": Preset(
            {"gamma": 0.5, "lam": 0.95, "alpha": 1.0, "beta": 0.1},
            f"{_CODE}, python defaults of InstructBLIP's POPE runner",
        ),
    }

    gamma: float = 0.5
    lam: float = 1.0
    alpha: float = 1.0
    beta: float = 0.1
    scheme: Scheme = "zeros"
    seed: int = 0

    @property
    def shares_prefix(self) -> bool:
        """True without a second run, which would read whole prompts."""
        return self.alpha == 0

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("avisc", "gamma", self.gamma, low=0, high=1)
        check_number("avisc", "lam", self.lam, low=-100, high=100)
        check_number("avisc", "alpha", self.alpha, low=0, high=100)
        check_number("avisc", "beta", self.beta, low=0, high=1)
        check_choice("avisc", "scheme", self.scheme, ("zeros", "ones", "noise"))
        check_seed("avisc", self.seed)

    def controls(self) -> Mapping[str, Intervention]:
        """The cut alone: what is left of the gain comes from what is never chosen."""
        return {"cut only": replace(self, alpha=0.0)} if self.alpha and self.beta else {}

    def idle(self) -> AvisC:
        """The same without contrast or cut."""
        return replace(self, alpha=0.0, beta=0.0)

    def literal(self) -> ScoreForm:
        """The formula on whole maps, with a whole run of blanked embeddings."""

        def edit(scores: Tensor, whole: Whole) -> Tensor:
            if not whole.has_image:
                return scores
            columns = [c for c, kept in enumerate(whole.kept.tolist()) if not kept]
            ids = whole.inputs["input_ids"][0].tolist()
            columns = [c for c in columns if ids[c] in whole.host.image_ids]
            maps = torch.stack([row[:, columns].mean(0) for _, row in sorted(whole.last.items())])
            order = sorted(range(len(maps)), key=lambda n: -float(maps[n].sum()))
            kept: list[int] = []
            while sum(float(maps[n].sum()) for n in kept) < self.gamma * float(maps.sum()):
                kept.append(order[len(kept)])
            mean = maps[kept or order[:1]].mean(0)
            bound = float(mean.mean()) + self.lam * float(mean.std())
            others = [c for c, a in zip(columns, mean.tolist(), strict=True) if a < bound]

            def enter(given: Mapping[str, Any]) -> Mapping[str, Any]:
                blank = torch.zeros(
                    given["inputs_embeds"].shape[:2], dtype=torch.bool, device="cpu"
                )
                blank[0, others] = True
                return blanked(given, blank, self.scheme, self.seed)

            other = whole.after(whole.inputs, enter)
            return literal_cut(scores + self.alpha * (scores - other), scores, self.beta)

        return ScoreForm(edit)

    def resolve(self, host: Host) -> AvisC:
        """Check that patches are columns."""
        require_patches("AvisC", host)
        require_scores("AvisC", host)
        return self

    def bind(self, host: Host) -> Edit:
        """Make the edit; no second run if alpha is 0."""
        layers = [site.layer for site in host.sites]
        return _AvisCEdit(self, layers) if self.alpha else CutEdit(self.beta)


def largest_layers(weights: Tensor, gamma: float) -> Tensor:
    """Indices of the layers that hold most of the image's weight, the largest first.

    Args:
        weights: "L n", each layer's weights on the image's columns.
        gamma: The share that they hold together at least.
    """
    shares = weights.sum(1) / weights.sum()
    ordered, layers = shares.sort(descending=True, stable=True)
    count = 1 + int((ordered.cumsum(0) < gamma).sum())
    return layers[:count]


def find_blind(weights: Tensor, gamma: float, lam: float) -> Tensor:
    """The image tokens that are blind, bool "n".

    Args:
        weights: "L n", each layer's weights on the image's columns, float32.
        gamma: Share of the image's weight, as in `largest_layers`.
        lam: Standard deviations above the mean.
    """
    mean = weights[largest_layers(weights, gamma)].mean(0)
    spread = mean.std() if len(mean) > 1 else mean.new_zeros(())
    return mean >= mean.mean() + lam * spread


def blanked(given: Mapping[str, Any], blank: Tensor, scheme: Scheme, seed: int) -> dict[str, Any]:
    """A text tower's arguments with some columns blanked.

    Args:
        given: The arguments, with "inputs_embeds" "B Q E".
        blank: Bool "B Q".
        scheme: Replacement of the blanked embeddings.
        seed: Seed of the noise.

    Raises:
        ValueError: The tower was given no embeddings.
    """
    embeds = given.get("inputs_embeds")
    if not isinstance(embeds, Tensor):
        raise ValueError("avisc blanks image embeddings, and the text tower was given none")
    blank = blank.to(embeds.device)
    new = torch.zeros_like(embeds) if scheme == "zeros" else torch.ones_like(embeds)
    if scheme == "noise":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(
            embeds.shape[1:], generator=generator, dtype=torch.float32, device="cpu"
        )
        new = drawn.to(embeds).expand_as(embeds)
    found = {**given, "inputs_embeds": torch.where(blank[..., None], new, embeds)}
    deep, where = given.get("deepstack_visual_embeds"), given.get("visual_pos_masks")
    if deep is not None and where is not None:
        # Qwen3-VL adds features of the picture to the first layers' outputs as well.
        gone = blank[where.to(blank.device)][:, None]
        found["deepstack_visual_embeds"] = [one.masked_fill(gone, 0) for one in deep]
    return found


class _AvisCEdit(Edit):
    rows = "last"
    reads_only = reads_again = True

    def __init__(self, spec: AvisC, layers: Collection[int]) -> None:
        super().__init__(layers)
        self.spec = spec
        self.weights: dict[int, Tensor] = {}
        self.last, self.length, self.end = torch.empty(0), 0, -1

    @property
    def branches(self) -> tuple[Branch, ...]:  # type: ignore[override]
        """The blanked run, by what this pass saw."""
        combine = functools.partial(_combine, self.spec)
        return (Branch(_inputs, combine, enter=self._enter),)

    def select(self, rows: Tensor) -> Edit:
        """The edit of some rows; once the prompt is read, it remembers nothing."""
        twin = copy.copy(self)
        twin.weights = {}
        return twin

    def begin(self, pass_: Pass) -> None:
        self.weights, self.length = {}, pass_.length
        if pass_.prompt_start:
            self.last = pass_.last_rows
            self.end = int(self.last.max())
        elif pass_.past <= self.end:
            raise NotImplementedError(
                "avisc blanked tokens by what the end of a prompt attends to, and its cache was "
                "cut to less: read the new prompt from its beginning"
            )

    def active(self, layer: int, pass_: Pass) -> bool:
        return pass_.prompt_start and pass_.prompt_end

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        here = (plan.rows == self.last.to(plan.rows.device)[:, None]) & plan.valid
        # A static cache has columns behind the prompt's, in some layers more than in others.
        row = (logits.softmax(-1).mean(1) * here[..., None]).sum(1)[:, : self.length]
        # It comes in one of several parts, and once more if it is run again.
        before = self.weights.get(layer, row)
        self.weights[layer] = torch.where(here.any(1, keepdim=True), row, before)

    def _enter(self, given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
        image = pass_.tokens.is_kind(Kind.IMAGE)
        blank = torch.zeros_like(image)
        weights = torch.stack([row.cpu() for _, row in sorted(self.weights.items())])
        # Beams and sampled answers of one prompt are rows of the main run.
        times = weights.shape[1] // pass_.batch
        for row, columns in enumerate(image):
            if bool(columns.any()):
                seen = weights[:, row * times, : len(columns)][:, columns]
                blank[row, columns] = ~find_blind(seen, self.spec.gamma, self.spec.lam)
        return blanked(given, blank, self.spec.scheme, self.spec.seed)


def _inputs(given: Mapping[str, Any], pass_: Pass) -> Mapping[str, Any]:
    require_image("avisc", pass_, "its blind tokens")
    return given


def _combine(spec: AvisC, scores: Tensor, other: Tensor, pass_: Pass) -> Tensor:
    other = torch.where(other.isnan().any(-1, keepdim=True), scores, other)
    return contrasted(spec.alpha, spec.beta, scores, other, pass_)
