"""AVAR's training-free scaling: more attention to the image, less to the system prompt.

On Z at text rows behind the image, every head and layer:

    Z + image Z on image columns,  Z - system Z on system columns

arXiv 2603.03825 (ICLR 2026), its intervention without training; there is no code of it (the
repository trains). The paper doesn't say whether Z is the logit or the weight, nor at which rows:
its notation and its ``image = 0.15`` are VAF's, which scales logits of rows behind the image, so
that is the default here. ``domain="probs"`` scales weights, and rows sum to 1 again. Note that a
factor above 1 lowers attention where a logit is negative.
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
from regaze.hooks.literal import Map, MapForm, reweighed
from regaze.hooks.passes import Columns
from regaze.interventions.base import Intervention, Preset, register
from regaze.interventions.lvlm.common import choose_layers, require_patches
from regaze.interventions.lvlm.vaf import scale_logits


@register
@dataclass(frozen=True)
class AVAR(Intervention):
    """Scale text rows' attention to the image up and to the system prompt down, in every layer.

    Attributes:
        image: Share added on image columns; 0.15 in the paper.
        system: Share taken from system columns (text before the first image); the paper tries 0,
            0.05, 0.4 and 0.6 and gains up to 0.4.
        layers: Layers to edit; all by default.
        domain: Meaning of Z in the formula above: "logits" or "probs".
    """

    name: ClassVar[str] = "avar"
    summary: ClassVar[str] = "scale attention to the image up and to the system prompt down"
    paper: ClassVar[str] = "arXiv 2603.03825"
    presets: ClassVar[Mapping[str, Preset]] = {
        "qwen2.5-vl-7b": Preset(
            {"image": 0.15, "system": 0.4},
            "arXiv 2603.03825, as notes on the paper give it; system is the largest that gains",
        )
    }

    image: float = 0.15
    system: float = 0.4
    layers: tuple[int, ...] | None = None
    domain: Literal["logits", "probs"] = "logits"

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("avar", "image", self.image, low=-1, high=100)
        check_number("avar", "system", self.system, low=-100, high=1)
        check_choice("avar", "domain", self.domain, ("logits", "probs"))

    def controls(self) -> Mapping[str, Intervention]:
        """Both shares with the other sign, as far as they allow it."""
        if not (0 <= self.image <= 1 and 0 <= self.system <= 1) or self.image == self.system == 0:
            return {}
        return {"flipped sign": replace(self, image=-self.image, system=-self.system)}

    def idle(self) -> AVAR:
        """The same with nothing added or taken."""
        return replace(self, image=0.0, system=0.0)

    def literal(self) -> MapForm:
        """``Z + image Z`` and ``Z - system Z`` at text rows."""

        def edit(z: Tensor, m: Map) -> Tensor:
            on_image, on_system = m.text & m.image, m.text & m.system
            if self.domain == "logits":
                z = torch.where(on_image, z + self.image * z, z)
                return torch.where(on_system, z - self.system * z, z)
            a = z.double().masked_fill(~m.seen, -torch.inf).softmax(-1).nan_to_num(0)
            new = torch.where(on_image, a + self.image * a, a)
            new = torch.where(on_system, new - self.system * new, new)
            return reweighed(z, a, new).float()

        return MapForm(self.layers or (), edit)

    def resolve(self, host: Host) -> AVAR:
        """Choose the layers."""
        require_patches("AVAR", host)
        default = range(len(host.sites))
        return replace(self, layers=choose_layers("avar", host, self.layers, default))

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if both shares are 0."""
        return _Scale(self)


class _Scale(Edit):
    rows = "text"

    def __init__(self, spec: AVAR) -> None:
        super().__init__(spec.layers or () if spec.image or spec.system else ())
        self.factors = 1 + spec.image, 1 - spec.system
        self.probs = spec.domain == "probs"

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        up, down = self.factors
        if not self.probs:
            return scale_logits(logits, columns.image, columns.system, up, down)
        # Weights that are multiplied by m are logits to which log m is added.
        bias = math.log(max(up, 1e-30)) * columns.image.float()
        return logits + bias + math.log(max(down, 1e-30)) * columns.system.float()
