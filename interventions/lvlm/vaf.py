"""VAF (ClearSight): scale the logits of middle layers, image up and system prompt down.

On scaled logits z of text rows after the image, every head, before the mask:

    z_j <- enhance * z_j on image columns,  suppress * z_j on system columns

Yin et al., arXiv 2503.13107; reference code ustc-hyin/ClearSight@5466c94. The code hard-codes
columns 0-34 as system prompt and 35-610 as image and treats any block of at most 611 rows as
decoding; with the columns where they really are, neither matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_number
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import at_depth, choose_layers, require_patches


@register
@dataclass(frozen=True)
class VAF(Intervention):
    """Scale text rows' logits on image and system columns.

    Note that a factor above 1 lowers attention where a logit is negative.

    Attributes:
        enhance: Factor on image columns.
        suppress: Factor on system columns (text before the first image).
        layers: Layers to edit; by default 9 to 14 of 32, at the same depth in other models.
    """

    name: ClassVar[str] = "vaf"
    summary: ClassVar[str] = "scale image logits up and system logits down in middle layers"
    paper: ClassVar[str] = "arXiv 2503.13107"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"enhance": 1.15, "suppress": 0.95, "layers": range(9, 15)},
            "ustc-hyin/ClearSight@5466c94",
        )
    }

    enhance: float = 1.15
    suppress: float = 0.95
    layers: tuple[int, ...] | None = None

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("vaf", "enhance", self.enhance, low=0, high=100)
        check_number("vaf", "suppress", self.suppress, low=0, high=100)

    def controls(self) -> Mapping[str, Intervention]:
        """Both factors mirrored at 1, as far as they stay positive."""
        if not (1 <= self.enhance < 2 and self.suppress <= 1) or self.enhance == self.suppress:
            return {}
        mirrored = replace(
            self, enhance=round(2 - self.enhance, 9), suppress=round(2 - self.suppress, 9)
        )
        return {"flipped sign": mirrored}

    def idle(self) -> VAF:
        """The same with both factors 1."""
        return replace(self, enhance=1.0, suppress=1.0)

    def literal(self) -> MapForm:
        """``enhance z`` at text rows' image columns, ``suppress z`` at their system columns."""

        def edit(z: Tensor, m: Map) -> Tensor:
            z = torch.where(m.text & m.image, self.enhance * z, z)
            return torch.where(m.text & m.system, self.suppress * z, z)

        return MapForm(self.layers or (), edit)

    def resolve(self, host: Host) -> VAF:
        """Choose the layers."""
        require_patches("VAF", host)
        n = len(host.sites)
        first, last = at_depth(9, n), at_depth(15, n)
        default = range(first, max(last, first + 1))
        return replace(self, layers=choose_layers("vaf", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if both factors are 1."""
        return _VAFEdit(self)


class _VAFEdit(Edit):
    rows = "text"

    def __init__(self, spec: VAF) -> None:
        acts = spec.enhance != 1 or spec.suppress != 1
        super().__init__(spec.layers or () if acts else ())
        self.spec = spec
        self.keeps_masked = spec.enhance > 0 and spec.suppress > 0

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return scale_logits(
            logits, columns.image, columns.system, self.spec.enhance, self.spec.suppress
        )


def scale_logits(
    logits: Tensor, image: Tensor, system: Tensor, enhance: float, suppress: float
) -> Tensor:
    """Scale columns of the logits.

    Args:
        logits: "... K".
        image: Bool, broadcastable to the logits.
        system: Bool, system columns, of the same shape.
        enhance: Factor on image columns.
        suppress: Factor on system columns.
    """
    one = torch.ones((), device=logits.device, dtype=logits.dtype)
    return logits * torch.where(image, enhance, torch.where(system, suppress, one))
