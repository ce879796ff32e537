"""SEG: guidance away from a branch whose attention energy is smoothed by blurring queries.

The paper blurs the logits along the query axis over the image's token grid with a Gaussian of
standard deviation sigma; blurring the queries is the same, because logits are linear in them. An
infinite blur gives every token the mean query. Hong, arXiv 2408.00760, section 4; released code
SusungHong/SEG-SDXL@cf8256d (pipeline_seg.py).

Where paper and code differ, ``sense`` chooses. The code, which made the published images and is the
default, perturbs the conditional branch and adds ``scale (cond - perturbed)``. The paper writes
``gamma eps - (gamma - 1) perturbed``, so its weight is gamma - 1, and with classifier-free guidance
it blurs the *unconditional* branch: ``(1 - g + gamma) uncond + g cond - gamma perturbed``. With
``sense="paper"`` the field ``scale`` is gamma.

Queries are taken where the kernel gets them, after normalisation and rotary embedding: so it is the
logits that are blurred, in models that have these too. In joint attention the image's queries are
blurred, the text's aren't.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.perturb import blur_queries, mean_query
from regaze.hooks.diffusion.works import Guidance
from regaze.interventions.base import Intervention, register
from regaze.interventions.diffusion.guided import Guided

INFINITE = 9999.0
"""Above this sigma the blur is infinite, as in the released code."""


@register
@dataclass(frozen=True)
class SEG(Guided):
    """Smoothed-energy guidance.

    Attributes:
        sigma: Standard deviation of the blur in tokens of the layer's grid; above 9999 every token
            gets the mean query, which is the default as in the released code.
        sense: "code" or "paper": which branch is perturbed, and what ``scale`` means.
    """

    name: ClassVar[str] = "seg"
    summary: ClassVar[str] = "guide away from a branch whose queries are blurred"
    paper: ClassVar[str] = "arXiv 2408.00760"

    sigma: float = 9999999.0
    sense: str = "code"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_number("seg", "sigma", self.sigma, low=0)
        check_choice("seg", "sense", self.sense, ("code", "paper"))

    def idle(self) -> SEG:
        """The same with nothing blurred."""
        return replace(self, sigma=0.0)

    def controls(self) -> dict[str, Intervention]:
        """The same difference, towards the blurred branch."""
        # The paper's gamma weighs gamma - 1 without guidance by prompt: -gamma isn't its mirror.
        return super().controls() if self.sense == "code" else {}

    def literal(self) -> GuidanceForm:
        """A whole second pass of the branch that the sense says."""
        return replace(super().literal(), branch="uncond" if self.sense == "paper" else "cond")

    def literal_map(self, m: Map) -> Tensor:
        """``softmax(G z)``: the image's logits blurred along the query axis by a matrix."""
        if not self.sigma:
            return m.weights
        frames, rows, columns = m.grid
        if self.sigma > INFINITE:
            blur = m.identity[m.image, m.image] * 0 + 1 / (m.image.stop - m.image.start)
        else:
            picture = torch.kron(blur_matrix(rows, self.sigma), blur_matrix(columns, self.sigma))
            blur = torch.kron(torch.eye(frames, dtype=torch.float32, device="cpu"), picture).to(
                m.logits
            )
        logits = m.logits.clone()
        logits[:, :, m.image] = blur @ logits[:, :, m.image]
        return (logits + m.bias).softmax(-1)

    def weight(self, t: float, guided: bool) -> float:
        """The scale; the paper's gamma counts as gamma - 1 where there is one branch."""
        weight = super().weight(t, guided)
        alone = self.sense == "paper" and not guided and self.scale
        return weight * (self.scale - 1) / self.scale if alone else weight

    def bind(self, host: Host) -> Guidance:
        """Make the guidance; a sigma of 0 blurs nothing and is a no-op."""
        sites = self.sites(host) if self.sigma else []
        for site in sites:
            if site.kind == "temporal":
                raise ValueError(f"seg: {site.name} attends over frames, which have no image grid")
        paper = self.sense == "paper"
        return Guidance.away_from(
            sites,
            lambda call: _blurred(call, self.sigma),
            rows="uncond" if paper else "cond",
            scale_alone=self.scale - 1 if paper else None,
            **self.window(),
        )


def blur_matrix(side: int, sigma: float) -> Tensor:
    """The matrix "side side" that blurs one axis: a Gaussian of odd length, edges reflected."""
    length = math.ceil(6 * sigma) + 1
    length -= 1 - length % 2
    half = min(length, side + (1 - side % 2)) // 2
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(-half, half + 1)]
    matrix = torch.zeros(side, side, dtype=torch.float32, device="cpu")
    for i in range(side):
        for offset, weight in zip(range(-half, half + 1), weights, strict=True):
            j = abs(i + offset)
            matrix[i, j if j < side else 2 * (side - 1) - j] += weight / sum(weights)
    return matrix


def _blurred(call: Call, sigma: float) -> Tensor:
    image = call.image()
    rows = call.query[:, :, image]
    if not rows.shape[2]:
        return call.output
    if sigma > INFINITE:
        blurred = mean_query(rows)
        alone = rows.shape[2] == call.query.shape[2]
        if alone and (call.mask is None or call.mask.shape[-2] == 1):
            return call.kernel(blurred, call.key, call.value).expand(*rows.shape[:3], -1)
        blurred = blurred.expand_as(rows)
    else:
        grid = call.layout.grid(call.site, rows.shape[2])
        if grid is None:
            raise ValueError(
                f"seg: a finite sigma needs the grid of the {rows.shape[2]} image tokens of "
                f"{call.site.name}, which isn't known for this model; use sigma=9999999"
            )
        blurred = blur_queries(rows, grid, sigma)
    query = torch.cat([call.query[:, :, : image.start], blurred, call.query[:, :, image.stop :]], 2)
    return call.kernel(query, call.key, call.value)
