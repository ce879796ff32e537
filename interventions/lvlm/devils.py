"""Devils in the middle layers: what all heads see in the image, added to each head's view.

On scaled logits z of the last row, image columns j, every head h of H:

    z_hj <- z_hj + alpha (1/H) sum_h' |z_h'j|

"Heads-guided attention intervention" of Jiang et al., arXiv 2411.16724, section 5; reference code
ZhangqiJiang07/middle_layers_indicating_hallucinations@a0622a9 (modify_attention.py). PAI adds each
head's own |z|; this adds their mean, so columns that many heads agree on gain everywhere. The code
can also take the mean over the ``guides`` heads that give the image most attention.
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
class Devils(Intervention):
    """Raise the last row's logits on image columns by a share of their mean size over heads.

    Attributes:
        alpha: Share added; 0 is a no-op, negative values look away (a control).
        layers: Layers to edit; by default 5 to 18 of 32, at the same depth in other models.
        guides: Number of heads in the mean, those that look at the image most; by default all, as
            in the paper.
    """

    name: ClassVar[str] = "devils"
    summary: ClassVar[str] = "boost image logits in middle layers by their mean over heads"
    paper: ClassVar[str] = "arXiv 2411.16724"
    presets: ClassVar[Mapping[str, Preset]] = {
        "llava-1.5-7b": Preset(
            {"alpha": 0.5, "layers": tuple(range(5, 19))},
            "ZhangqiJiang07/middle_layers_indicating_hallucinations@a0622a9 log/llava-1.5: "
            "alpha 0.5, layers 5-19 (exclusive), 512 tokens",
        ),
    }

    alpha: float = 0.5
    layers: tuple[int, ...] | None = None
    guides: int | None = None

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("devils", "alpha", self.alpha, low=-100, high=100)
        if self.guides is not None and (type(self.guides) is not int or self.guides < 1):
            raise ValueError(
                f"devils: guides must be a number of heads, 1 or more, got {self.guides!r}"
            )

    def controls(self) -> Mapping[str, Intervention]:
        """Looking away from the image by as much."""
        return {"flipped sign": replace(self, alpha=-self.alpha)} if self.alpha > 0 else {}

    def idle(self) -> Devils:
        """The same with nothing added."""
        return replace(self, alpha=0.0)

    def literal(self) -> MapForm:
        """``z + alpha mean |z|`` at the last row's image columns."""

        def edit(z: Tensor, m: Map) -> Tensor:
            heads = list(range(z.shape[1]))
            if self.guides is not None and m.last.any():
                a = z.masked_fill(~m.seen, -torch.inf).softmax(-1)
                mass = (a * m.image)[0, :, int(m.last.flatten().nonzero())].sum(-1).tolist()
                heads = sorted(heads, key=lambda h: mass[h], reverse=True)[: self.guides]
            guide = z[:, heads].abs().sum(1, keepdim=True) / len(heads)
            return torch.where(m.last & m.image, z + self.alpha * guide, z)

        return MapForm(self.layers or (), edit)

    def resolve(self, host: Host) -> Devils:
        """Choose the layers."""
        require_patches("Devils", host)
        if self.guides is not None and self.guides > host.n_heads:
            raise ValueError(
                f"devils: guides is {self.guides}, but this {host.model_type} has {host.n_heads} "
                "heads per layer"
            )
        n = len(host.sites)
        first = at_depth(5, n)
        default = range(first, max(at_depth(19, n), first + 1))
        layers = choose_layers("devils", host, self.layers, default)
        return replace(self, layers=layers, guides=self.guides or host.n_heads)

    def bind(self, host: Host) -> Edit:
        """Make the edit; no layers if alpha is 0."""
        return _DevilsEdit(self)


class _DevilsEdit(Edit):
    rows = "last"

    def __init__(self, spec: Devils) -> None:
        super().__init__(spec.layers or () if spec.alpha else ())
        self.alpha, self.guides = spec.alpha, spec.guides

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return guide_image(logits, columns.image, self.alpha, self.guides)


def guide_image(logits: Tensor, image: Tensor, alpha: float, guides: int | None = None) -> Tensor:
    """Add ``alpha`` times the mean over heads of ``|z|`` on image columns.

    Args:
        logits: "B H R K", -inf where masked.
        image: Bool, broadcastable to the logits.
        alpha: Share added.
        guides: Over how many heads, those that look at the image most; None: over all.
    """
    sizes = logits.abs()
    if guides is not None and guides < logits.shape[1]:
        mass = (logits.softmax(-1) * image).sum(-1, keepdim=True)
        rank = mass.argsort(1, descending=True).argsort(1)
        sizes = sizes.masked_fill(rank >= guides, 0.0)
    guide = sizes.sum(1, keepdim=True) / (guides or logits.shape[1])
    return logits + torch.where(image, alpha * guide, 0.0)
