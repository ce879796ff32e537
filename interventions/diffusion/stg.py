"""STG, spatiotemporal skip guidance: away from a model that skips a block, or its attention.

    eps + s (eps_cond - eps_skipped)

Hyung et al., arXiv 2411.18664; code junhahyung/STGuidance@df04da0, which leaves out whole blocks,
and @3ab859a, which also skips attention, in two ways. So what is skipped is named:

    block       the block's streams pass through (the current code; "STG-R" of the older one)
    attention   every token attends to itself alone, the output is V (the paper's A = I; "STG-A" of
                LTX)
    diagonal    in joint attention, the video's tokens see themselves and the text ("STG-A" of
                HunyuanVideo; that of CogVideoX covers other rows by mistake)

The older LTX tree's "STG-R", which returns the attention's input, isn't offered, nor is the
rescaling by one standard deviation over a whole batch, which is off in the code. The Wan script
there, whose branch has the negative prompt, guides nothing as it ships.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from regaze.hooks.checks import check_choice
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import GuidanceForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Guidance
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.guided import Guided
from regaze.interventions.diffusion.pag import PAG
from regaze.interventions.diffusion.skip import Skipping, check_layers

_SOURCE = "junhahyung/STGuidance@df04da0"


@register
@dataclass(frozen=True)
class STG(Guided):
    """Spatiotemporal skip guidance.

    Attributes:
        scale: Weight of the difference; 0 is a no-op.
        layers: Blocks, by the numbers or paths of their attention: see
            `regaze.hooks.diffusion.sites`. Layer 34 of Mochi, 11 of CogVideoX, 19 of LTX, 2 of
            HunyuanVideo and of Wan are in the blocks of these numbers.
        skip: The part that is skipped: "block", "attention" or "diagonal".
    """

    name: ClassVar[str] = "stg"
    summary: ClassVar[str] = "guide a video away from a branch that skips a block"
    paper: ClassVar[str] = "arXiv 2411.18664"
    presets: ClassVar[dict[str, Preset]] = {
        "mochi": Preset({"layers": [34]}, _SOURCE),
        "cogvideox": Preset({"layers": [11]}, _SOURCE),
        "ltx": Preset({"layers": [19]}, _SOURCE),
        "hunyuan-video": Preset({"layers": [2]}, _SOURCE),
    }

    scale: float = 1.0
    skip: str = "block"

    def check(self) -> None:
        """Check the fields' domains."""
        super().check()
        check_choice("stg", "skip", self.skip, ("block", "attention", "diagonal"))

    def sites(self, denoiser: Host) -> list[Site]:
        """The layers to skip, which have to be named."""
        check_layers("stg", self.layers, ", ".join(f"stg@{name}" for name in self.presets))
        return super().sites(denoiser)

    def literal(self) -> GuidanceForm:
        """A whole second pass without the blocks, or with edited maps."""
        form = super().literal()
        return replace(form, edit=None) if self.skip == "block" else form

    def literal_map(self, m: Map) -> Tensor:
        """The identity, or with the picture's rows seeing themselves and the text."""
        return self._attention().literal_map(m)

    def bind(self, host: Host) -> Guidance:
        """Make the guidance."""
        if self.skip == "block":
            return Skipping.over("stg", host, self.sites(host), **self.window())
        return self._attention().bind(host)

    def _attention(self) -> PAG:
        """The guidance that skips attention: PAG on these layers."""
        variant = "joint" if self.skip == "attention" else "image"
        return PAG(self.scale, self.layers, self.start, self.stop, self.adaptive, variant)
