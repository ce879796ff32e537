"""SLG, skip-layer guidance: away from what the denoiser predicts with some blocks left out.

    eps + s (eps_cond - eps_skipped),

where both streams pass through a block that is left out. There is no paper: it came with Stable
Diffusion 3.5 medium, and the reference is diffusers' SD3 pipeline (0.42.1,
``skip_guidance_layers``), whose latents and ours agree. Its window is strict at both ends: with
start 0 the first step doesn't act. Unlike there it also acts without classifier-free guidance, with
the same formula. diffusers' guider ``SkipLayerGuidance`` differs: it rounds the window down to
whole steps, and its scale s without guidance is ``s - 1`` here.

The branch begins at the first block that is left out: with blocks 7 to 9 of 24 it runs 14. Blocks
[7, 8, 9] of SD3.5 *large* destroy the picture (diffusers issue 10455).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.guided import Guided
from regaze.interventions.diffusion.skip import Skipping, check_layers


@register
@dataclass(frozen=True)
class SLG(Guided):
    """Skip-layer guidance.

    Attributes:
        scale: Weight of the difference; 0 is a no-op.
        layers: The blocks to leave out, by the numbers or paths of their attention: see
            `regaze.hooks.diffusion.sites`. In SD3, Wan and LTX layer 7 is in block 7.
        start: Share of the sampling steps after which it begins; the step there doesn't act.
        stop: Share of the sampling steps at which it ends.
    """

    name: ClassVar[str] = "slg"
    summary: ClassVar[str] = "guide away from a branch with blocks left out"
    paper: ClassVar[str] = "none: diffusers 0.42.1, SD3 pipeline"
    presets: ClassVar[dict[str, Preset]] = {
        "sd3.5-medium": Preset(
            {"layers": [7, 8, 9], "scale": 2.8, "start": 0.01, "stop": 0.2},
            "diffusers 0.42.1, documentation of StableDiffusion3Pipeline's skip_guidance_layers",
        ),
    }

    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    def sites(self, denoiser: Host) -> list[Site]:
        """The blocks to leave out, which have to be named."""
        check_layers("slg", self.layers, "slg@sd3.5-medium")
        return super().sites(denoiser)

    def literal(self) -> GuidanceForm:
        """A whole second pass without the blocks."""
        return replace(super().literal(), edit=None, strict=True)

    def literal_map(self, m: Map) -> Tensor:
        """Never asked for: no map is edited."""
        raise NotImplementedError

    def bind(self, host: Host) -> Skipping:
        """Make the guidance."""
        return Skipping.over("slg", host, self.sites(host), strict=True, **self.window())
