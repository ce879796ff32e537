"""SPIN: hold down the heads that look at the image least.

At each layer, for the row that predicts the next token, with z a head's scaled logits:

    s_h = sum of z_hj over image columns j
    the floor(keep H) heads of largest s_h keep their output, the others' is multiplied by factor

Weights stay as they are. Sarkar et al., arXiv 2505.16411; reference code YUECHE77/SPIN@a6ddf4a
(attentionSPIN.py), which divides s by its deviation over heads first, and so ranks the same.

The paper speaks of "low attention to image tokens" and of each text query token; the code sums
logits before the softmax, which may be negative, and edits the last row alone. ``score="weights"``
sums attention weights instead, ``rows="text"`` takes every text row after the image. In a batch the
code's factors land on other rows than they were made for; that isn't reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.heads import choice_controls, random_keys

_README = "YUECHE77/SPIN@a6ddf4a README"


@register
@dataclass(frozen=True)
class SPIN(Intervention):
    """Scale down the outputs of the heads whose logits on the image are lowest.

    Attributes:
        keep: Share of a layer's heads that keep their output; 1 is a no-op. The README runs 0.8
            for POPE and 0.95 for CHAIR.
        factor: Factor of the others' outputs; 1 is a no-op.
        layers: Layers to edit; by default all.
        score: Quantity summed over image columns: "logits" (the code) or "weights".
        rows: "last", the predicting row (the code), or "text", all text rows after the image.
        heads: Heads that keep their output: "top" is the method, "bottom" and "random" are
            controls.
    """

    name: ClassVar[str] = "spin"
    summary: ClassVar[str] = "hold down the heads that look at the image least"
    paper: ClassVar[str] = "arXiv 2505.16411"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b-pope": Preset({"keep": 0.8, "factor": 0.1}, f"{_README}, 2. POPE Evaluation"),
        "llava-1.5-7b-chair": Preset(
            {"keep": 0.95, "factor": 0.08}, f"{_README}, 1. CHAIR Evaluation"
        ),
        "llava-1.5-13b-mmhal": Preset(
            {"keep": 0.9, "factor": 0.0, "layers": tuple(range(20))}, f"{_README}, 3. MMHal Bench"
        ),
        "qwen-vl-chat": Preset(
            {"keep": 0.7, "factor": 0.08, "layers": tuple(range(20))},
            f"{_README}, 1. CHAIR Evaluation and 3. MMHal Bench",
        ),
    }

    keep: float = 0.8
    factor: float = 0.1
    layers: tuple[int, ...] | None = None
    score: Literal["logits", "weights"] = "logits"
    rows: Literal["last", "text"] = "last"
    heads: Literal["top", "bottom", "random"] = "top"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("spin", "keep", self.keep, low=0, high=1)
        check_number("spin", "factor", self.factor, low=0, high=1)
        check_choice("spin", "score", self.score, ("logits", "weights"))
        check_choice("spin", "rows", self.rows, ("last", "text"))
        check_choice("spin", "heads", self.heads, ("top", "bottom", "random"))

    def controls(self) -> Mapping[str, Intervention]:
        """Name the controls: as many heads, random or from the other end."""
        return choice_controls(self)

    def idle(self) -> SPIN:
        """The same with all heads keeping their output."""
        return replace(self, keep=1.0)

    def literal(self) -> MapForm | None:
        """Weights times ``factor`` in heads beyond the best; None for controls."""
        if self.heads != "top":
            return None

        def weigh(a: Tensor, z: Tensor, m: Map) -> Tensor:
            a, on_image = a.clone(), m.seen & m.image
            rows = (m.last if self.rows == "last" else m.text)[0, 0, :, 0].nonzero().flatten()
            for row in rows.tolist():
                columns = on_image[0, 0, row]
                sums = (z if self.score == "logits" else a)[0, :, row, columns].sum(-1).tolist()
                order = sorted(range(len(sums)), key=lambda h: sums[h], reverse=True)
                if columns.any():
                    a[0, order[int(self.keep * len(sums)) :], row] *= self.factor
            return a

        return MapForm(self.layers or (), weigh=weigh)

    def resolve(self, host: Host) -> SPIN:
        """Choose the layers.

        Raises:
            ValueError: Image patches are no columns here, or a factor on a head would be taken
                back.
        """
        require_patches("SPIN", host)
        if not host.family.free_heads:
            raise ValueError(
                f"SPIN scales the outputs of heads, but {host.model_type} normalises each head's "
                "output afterwards, which takes the factor back"
            )
        return replace(
            self, layers=choose_layers("spin", host, self.layers, range(len(host.sites)))
        )

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if nothing would be scaled."""
        return _SPINEdit(self)


class _SPINEdit(Edit):
    def __init__(self, spec: SPIN) -> None:
        acts = spec.keep < 1 and spec.factor != 1
        super().__init__(spec.layers or () if acts else ())
        self.spec = spec
        self.rows = spec.rows

    def edit_weights(self, layer: int, weights: Tensor, logits: Tensor, columns: Columns) -> Tensor:
        spec = self.spec
        score = logits if spec.score == "logits" else weights
        if columns.seen is None:  # No logit is -inf, which would make NaN of 0.
            seen, sums = columns.image, (score * columns.image).sum(-1)
        else:
            seen = columns.image & columns.seen
            sums = torch.where(seen, score, 0.0).sum(-1)
        factor = head_factors(sums, spec.keep, spec.factor, spec.heads)
        if columns.seen is not None or columns.offset:
            # A sliding window may hide the image; then no head is better than another.
            factor = factor.masked_fill(~seen.any(-1), 1.0)
        return weights * factor[..., None]


def head_factors(sums: Tensor, keep: float, factor: float, heads: str = "top") -> Tensor:
    """Choose the factor of each head's output.

    Args:
        sums: "B H R", how much each head looks at the image.
        keep: Share of heads that keep their output, rounded down.
        factor: Factor of the others.
        heads: "top", or as controls "bottom" (as many, from the other end) or "random" (as many,
            drawn with a fixed seed).

    Returns:
        "B H R".
    """
    if heads == "random":
        sums = random_keys(sums.shape[1], sums.device)[:, None].expand_as(sums)
    best = sums.topk(int(keep * sums.shape[1]), 1, largest=heads != "bottom", sorted=False)
    return torch.full_like(sums, factor).scatter(1, best.indices, 1.0)
