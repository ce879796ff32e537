"""PAG: guidance away from what the denoiser predicts if chosen layers attend to nothing.

In the perturbed branch every token of a chosen layer attends to itself alone (A' = I, so the heads
give V), and

    eps + s (eps_cond - eps_perturbed)

Ahn et al., arXiv 2403.17377; reference code cvlab-kaist/Perturbed-Attention-Guidance, whose
``eps' + s (eps - eps')`` with s = 4 is a scale of 3 here and in the paper.

In joint attention of text and image, "image rows" differ: ``variant="joint"`` makes the whole map
the identity, as in arXiv 2506.10978 (SD3, FLUX), and is the default because it needs no
special case. ``variant="image"`` is diffusers' SD3 pipeline: image tokens see themselves and the
text, text rows are unchanged. diffusers' own code for it forgets the q/k norms of SD3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.perturb import as_query_heads, image_block_identity
from regaze.hooks.diffusion.works import Guidance
from regaze.interventions.base import register
from regaze.interventions.diffusion.guided import Guided


@register
@dataclass(frozen=True)
class PAG(Guided):
    """Perturbed-attention guidance.

    Attributes:
        variant: Part of joint attention that the identity covers: the whole map ("joint"), or its
            image-image block alone ("image"). The same in image self-attention, where there is no
            text.
    """

    name: ClassVar[str] = "pag"
    summary: ClassVar[str] = "guide away from a branch whose tokens see only themselves"
    paper: ClassVar[str] = "arXiv 2403.17377"

    variant: str = "joint"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_choice("pag", "variant", self.variant, ("joint", "image"))

    def literal_map(self, m: Map) -> Tensor:
        """``A' = I``, or with the image's rows seeing themselves and the text."""
        if self.variant == "joint":
            return m.identity.expand_as(m.weights)
        logits, image = m.logits.clone(), m.image
        others = m.identity[image, image] == 0
        logits[:, :, image, image] = logits[:, :, image, image].masked_fill(others, -torch.inf)
        return (logits + m.bias).softmax(-1)

    def bind(self, host: Host) -> Guidance:
        """Make the guidance."""
        sites = self.sites(host)
        perturb = _image_alone if self.variant == "image" else _alone
        return Guidance.away_from(sites, perturb, **self.window())


def _alone(call: Call) -> Tensor:
    return as_query_heads(call.own, call.query.shape[1])


def _image_alone(call: Call) -> Tensor:
    image, heads = call.image(), call.query.shape[1]
    if image.start >= image.stop:
        return call.output
    if image == slice(0, call.key.shape[2]):
        return _alone(call)
    key, value = as_query_heads(call.key, heads), as_query_heads(call.value, heads)
    return image_block_identity(call.query, key, value, call.scale, image, call.kernel, call.mask)
