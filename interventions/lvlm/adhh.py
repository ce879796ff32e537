"""AD-HH: hallucination heads lose the text when they look at little else.

At the row that predicts the next token, in each listed head, with a its attention weights and T the
text after the image, generated text included:

    if sum of a_j over T >= threshold:  a_j <- 0 for j in T,  not renormalised

so such a head gives what it saw of the image and the system prompt, and less of it the more it
looked at text. Yang et al., "Mitigating hallucinations in large vision-language models via modular
attribution and intervention" (ICLR 2025); reference code
TianyunYoung/Hallucination-Attribution@841fc1b (LLaVA). The code's test adds up the samples of a
batch; here each sample has its own. For newer models the repository removes the heads' whole
output at all rows instead, without a test; that is another method and isn't this one.

Which heads they are is found by attribution: `regaze.attribute_heads`. Row ends and tile marks
inside an image are no text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns, GrowingMask, Pass
from regaze.hooks.tokens import Kind
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import require_patches
from regaze.interventions.lvlm.heads import (
    Heads,
    Pairs,
    by_layer,
    check_heads,
    check_listed,
    choose_heads,
    head_masks,
    other_heads,
)

_SOURCE = "TianyunYoung/Hallucination-Attribution@841fc1b"
LLAVA_7B: Pairs = (
    (16, 29), (26, 9), (13, 31), (15, 10), (20, 12), (30, 9), (19, 18), (17, 0), (18, 9), (26, 28),
    (19, 27), (18, 26), (15, 25), (14, 16), (31, 26), (15, 24), (31, 3), (22, 20), (27, 29),
    (17, 28),
)  # fmt: skip
LLAVA_13B: Pairs = (
    (0, 8), (29, 27), (23, 18), (20, 11), (36, 26), (19, 37), (22, 16), (22, 34), (21, 31),
    (20, 34), (37, 11), (17, 25), (35, 10), (17, 5), (15, 26), (0, 22), (19, 5), (19, 0), (14, 1),
    (23, 20), (21, 6), (30, 24), (26, 27), (21, 32), (15, 28), (15, 31), (19, 30), (20, 8),
    (19, 14), (14, 9), (39, 26), (25, 1), (18, 32), (17, 27), (39, 32),
)  # fmt: skip
LLAVA_34B: Pairs = (
    (45, 34), (43, 4), (43, 48), (44, 29), (35, 47), (40, 27), (54, 34), (37, 48), (43, 2),
    (41, 34),
)  # fmt: skip


def _published(heads: Pairs) -> Preset:
    where = f"{_SOURCE} LLaVA/eval_scripts/eval_caption_adhh.py, bash_scripts/decoding.sh"
    return Preset({"heads": heads, "threshold": 0.4}, where)


@register
@dataclass(frozen=True)
class ADHH(Intervention):
    """Take the text away from listed heads that give it most of their attention.

    Attributes:
        heads: Pairs (layer, head) that were found for this very model, see `presets`; or "all".
        layers: Layers to edit; by default those of the heads. Without heads, all heads of these.
        threshold: Least attention to text at which a head loses it; above 1 is a no-op. 0.4 in the
            released LLaVA script, 0.5 in that for MiniGPT-4.
        take: "listed" heads, or as a control as many "others" of the same layers.
    """

    name: ClassVar[str] = "adhh"
    summary: ClassVar[str] = "take the text away from listed heads that look at it most"
    paper: ClassVar[str] = "ICLR 2025, github.com/TianyunYoung/Hallucination-Attribution"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": _published(LLAVA_7B),
        "llava-1.5-13b": _published(LLAVA_13B),
        "llava-1.6-34b": _published(LLAVA_34B),
    }

    heads: Heads | None = None
    layers: tuple[int, ...] | None = None
    threshold: float = 0.4
    take: Literal["listed", "others"] = "listed"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("adhh", "threshold", self.threshold, low=0, high=2)
        check_heads("adhh", self.heads)
        check_choice("adhh", "take", self.take, ("listed", "others"))

    def controls(self) -> Mapping[str, Intervention]:
        """Name the control: as many other heads of the same layers."""
        return {"other heads": replace(self, take="others")} if self._listed else {}

    @property
    def _listed(self) -> bool:
        return self.take == "listed" and isinstance(self.heads, tuple) and bool(self.heads)

    def idle(self) -> ADHH:
        """The same with a threshold that no head reaches."""
        return replace(self, threshold=2.0)

    def literal(self) -> MapForm | None:
        """Weights on text set to 0 in heads whose text mass reaches the threshold."""
        if self.take != "listed":
            return None

        def weigh(a: Tensor, z: Tensor, m: Map) -> Tensor:
            after = m.image.cumsum(-1) > 0
            text = (after & ~m.image & ~m.structure)[0, 0, 0]
            a = a.clone()
            for row in m.last.flatten().nonzero().flatten().tolist():
                for head in range(a.shape[1]):
                    listed = self.heads == "all" or (m.layer, head) in (self.heads or ())
                    if listed and a[0, head, row, text].sum() >= self.threshold:
                        a[0, head, row, text] = 0
            return a

        return MapForm(self.layers or (), weigh=weigh)

    def check_given(self) -> None:
        """Check that heads are given."""
        check_listed("adhh", self.heads, self.layers)

    def resolve(self, host: Host) -> ADHH:
        """Check the heads, and fill in their layers."""
        require_patches("AD-HH", host)
        heads, layers = choose_heads("adhh", host, self.heads, self.layers)
        return replace(self, heads=heads, layers=layers)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if the threshold can't be reached."""
        return _ADHHEdit(self, host)


class _ADHHEdit(Edit):
    rows = "last"

    def __init__(self, spec: ADHH, host: Host) -> None:
        found = by_layer(spec.heads or (), spec.layers or (), host.n_heads)
        if spec.take == "others":
            found = other_heads(found, host.n_heads)
        super().__init__(found if spec.threshold <= 1 else ())
        self.masks = head_masks(found, host.n_heads)
        self.threshold = spec.threshold
        self.rest = GrowingMask(torch.empty(0))

    def begin(self, pass_: Pass) -> None:
        if not pass_.decodes:
            # What isn't text after the image; generated columns, beyond the mask's end, are.
            rest = pass_.tokens.is_kind(Kind.PAD, Kind.SYSTEM, Kind.IMAGE, Kind.SEPARATOR)
            self.rest = GrowingMask(rest[:, None, None].to(pass_.device))

    def select(self, rows: Tensor) -> _ADHHEdit:
        twin = copy.copy(self)
        twin.rest = self.rest.select(rows)
        return twin

    def edit_weights(self, layer: int, weights: Tensor, logits: Tensor, columns: Columns) -> Tensor:
        text = ~columns.of(self.rest).to(weights.device)
        return silence_text(weights, text, self.masks[layer].to(weights.device), self.threshold)


def silence_text(weights: Tensor, text: Tensor, heads: Tensor, threshold: float) -> Tensor:
    """Zero the weights on text of listed heads that give it at least so much attention.

    Args:
        weights: "B H R K".
        text: Bool, broadcastable to the weights: text after the image.
        heads: Bool "H 1 1".
        threshold: Least text mass.
    """
    on_text = weights * text
    silent = heads & (on_text.sum(-1, keepdim=True) >= threshold)
    return torch.addcmul(weights, on_text, silent.to(weights.dtype), value=-1)
