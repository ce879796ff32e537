"""Enhance-A-Video: strengthen a video model's attention where its frames attend to each other.

Of each call of video attention with T frames, take for every place of the picture and every head
the T x T map A of that place's tokens alone, softmax(q k' / sqrt d) of the final queries and keys.
Its off-diagonal mean is the cross-frame intensity CFI, and the module's output on the video's rows
is multiplied by

    f = max(1, (T + weight) CFI)

Luo et al., arXiv 2502.07508; code NUS-HPC-AI-Lab/Enhance-A-Video@16a7899. Rows of A sum to 1, so
CFI = (T - trace A) / (T (T - 1)): only the diagonal is needed, exp(l_tt - logsumexp_j l_tj).
Where a model has temporal attention (a factorised one: AnimateDiff), the map of its calls is A.

The factor comes after the output projection, its bias included, as in the code. Paper and code
write the temperature differently (tau, T + weight); the code's weight is the field here. The code
has one factor for a whole call, so that samples of a batch, and both halves of guidance, change
each other's; by default here each has its own, and ``per="call"`` is the code's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.perturb import as_query_heads
from regaze.hooks.diffusion.sites import PERTURBED, TEMPORAL, Site
from regaze.hooks.diffusion.works import Attend
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.temporal import places
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_CODE = "arXiv 2502.07508, code NUS-HPC-AI-Lab/Enhance-A-Video@16a7899"
_WEIGHTS = {
    "CogVideoXTransformer3DModel": 3.4,
    "HunyuanVideoTransformer3DModel": 4.0,
    "WanTransformer3DModel": 4.0,
}
"""The code's weights by the class of the denoiser."""
_CHUNK = 2**24
"""The most logits that exist at once."""


@register
@dataclass(frozen=True)
class EnhanceAVideo(ByLayers):
    """Video attention amplified by its cross-frame intensity.

    Attributes:
        weight: Added to the number of frames in the factor. By default the code's for Wan,
            CogVideoX and HunyuanVideo; other models must be given one. Short clips need less.
        per: The extent of a factor: each sample has its own ("item"), or one for the whole call
            ("call"), as in the code.
        layers: Layers, as in `Guided.layers`; by default all temporal attention of a model that has
            some, else all layers of self- and joint attention.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends; all steps by default, as in the code.
    """

    name: ClassVar[str] = "enhance_a_video"
    summary: ClassVar[str] = "amplify video attention by how much its frames see of each other"
    paper: ClassVar[str] = "arXiv 2502.07508"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[Mapping[str, Preset]] = {
        "cogvideox": Preset({"weight": 3.4, "per": "call"}, _CODE),
        "hunyuanvideo": Preset({"weight": 4.0, "per": "call"}, _CODE),
        "wan": Preset({"weight": 4.0, "per": "call"}, _CODE),
    }

    weight: float | None = None
    per: str = "item"
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0

    def check(self) -> None:
        """Check the fields' domains."""
        if self.weight is not None:
            check_number(self.name, "weight", self.weight)
        check_choice(self.name, "per", self.per, ("item", "call"))
        check_where(self.name, self.layers, self.start, self.stop)

    def idle(self) -> EnhanceAVideo:
        """The same with a weight so low that the factor is 1 whatever the maps are."""
        return replace(self, weight=-1e9)

    def literal(self) -> AttendForm:
        """The factor from whole T x T maps."""
        return AttendForm(
            self.layers or (), lambda m: m.weights, self.start, self.stop, factor=self._factor
        )

    def resolve(self, host: Host) -> EnhanceAVideo:
        """Fill in the weight and the layers.

        Raises:
            ValueError: No weight was published for this model, it has no such layers, or what its
                attention returns is normalised, which takes the factor off again.
        """
        if host.model == "MochiTransformer3DModel":
            raise ValueError(
                f"enhance_a_video: {host.model} normalises what its attention returns, so a factor "
                "on it changes nothing; it acts on Wan, CogVideoX and HunyuanVideo"
            )
        weight = _WEIGHTS.get(host.model) if self.weight is None else self.weight
        if weight is None:
            raise ValueError(
                f"enhance_a_video: no weight was published for {host.model}; give one (4 is what "
                f"{', '.join(_WEIGHTS)} have, or near it)"
            )
        return replace(self, weight=weight, layers=tuple(s.name for s in self._sites(host)))

    def bind(self, host: Host) -> Attend:
        """Make the edit."""
        return Attend(tuple(self._sites(host)), self.start, self.stop, self._attend)

    def _sites(self, host: Host) -> list[Site]:
        temporal = [site.name for site in host.sites if site.kind == "temporal"]
        every = temporal or [site.name for site in host.layers]
        if not temporal and "unet" in host.model.lower():
            raise ValueError(
                f"enhance_a_video: no attention of {host.model} sees several frames of a clip; it "
                "acts on video transformers (Wan, CogVideoX, HunyuanVideo) and on models with "
                "temporal attention (AnimateDiff)"
            )
        kinds = TEMPORAL if temporal else PERTURBED
        return chosen(self.name, host, every if self.layers is None else self.layers, kinds)

    def _attend(self, call: Call) -> Tensor:
        if call.site.kind == "temporal":
            return self._attend_over_frames(call)
        if call.layout.segments:  # Pictures' segments: a call may hold no token of theirs.
            _clip(call.site, call.layout.finest)
        video = call.image()
        grid = _clip(call.site, call.layout.grid(call.site, video.stop - video.start))
        first = video.start + call.first
        key = call.key[:, :, first : first + video.stop - video.start]
        key = as_query_heads(key, call.query.shape[1])
        cfi = intensity(call.query[:, :, video], key, grid[0], call.scale)
        call.amplify(self.factor(cfi, grid[0]))
        return call.output

    def _attend_over_frames(self, call: Call) -> Tensor:
        if call.pass_ is None:
            raise NotImplementedError("enhance_a_video: which places are whose isn't known here")
        frames, rows, count = call.query.shape[2], call.pass_.rows.batch, len(call.query)
        _clip(call.site, (frames, *places(self.name, call.site, count, rows, frames, call.layout)))
        key = as_query_heads(call.key, call.query.shape[1])
        each = intensity(call.query, key, frames, call.scale)
        factor = self.factor(each.unflatten(0, (rows, -1)).mean(1), frames)
        call.amplify(factor.repeat_interleave(count // rows))
        return call.output

    def factor(self, cfi: Tensor, frames: int) -> Tensor:
        """The factor of the output, "B"."""
        if self.per == "call":
            cfi = cfi.mean().expand_as(cfi)
        return ((frames + (self.weight or 0.0)) * cfi).clamp(min=1)

    def _factor(self, m: Map) -> Tensor:
        if m.site.kind == "temporal":
            frames, rows = m.weights.shape[-1], m.split[0]
            others = ~torch.eye(frames, dtype=torch.bool, device=m.weights.device)
            cfi = m.weights[..., others].unflatten(0, (rows, -1)).flatten(1).mean(1)
            cfi = cfi.mean().expand_as(cfi) if self.per == "call" else cfi
            each = (cfi * (frames + (self.weight or 0.0))).clamp(min=1)
            spread: Tensor = each.repeat_interleave(len(m.weights) // rows)
            return spread
        frames, rows, columns = _clip(m.site, m.grid)
        query, key = (
            x[:, :, m.image].unflatten(2, (frames, rows * columns)).transpose(2, 3)
            for x in (m.query, m.key)
        )
        maps = (query @ key.transpose(-1, -2) * m.scale).softmax(-1)
        others = ~torch.eye(frames, dtype=torch.bool, device=maps.device)
        cfi = maps[..., others].flatten(1).mean(1)
        cfi = cfi.mean().expand_as(cfi) if self.per == "call" else cfi
        factor: Tensor = (cfi * (frames + (self.weight or 0.0))).clamp(min=1)
        return factor


def intensity(query: Tensor, key: Tensor, frames: int, scale: float) -> Tensor:
    """The cross-frame intensity of each sample, "B" float32.

    Args:
        query: The video's queries "B H T*S D", frame after frame.
        key: Keys of the video, with as many heads.
        frames: T.
        scale: Factor of the logits.
    """
    places = query.shape[2] // frames
    trace = query.new_zeros(len(query), dtype=torch.float32)
    # Places before heads: that is how they lie where heads were split off, so nothing is copied.
    q, k = (x.transpose(1, 2).unflatten(1, (frames, places)) for x in (query, key))
    for some in _chunks(places, query.shape[0] * query.shape[1] * frames * frames):
        a, b = (x[:, :, some].flatten(2, 3).transpose(1, 2) for x in (q, k))
        logits = (a @ b.transpose(-1, -2)).float() * scale
        own = logits.diagonal(dim1=-2, dim2=-1) - logits.logsumexp(-1)
        trace += own.exp().sum((1, 2))
    mean = trace / (places * query.shape[1])
    return (frames - mean) / (frames * (frames - 1))


def _chunks(places: int, each: int) -> Iterator[slice]:
    size = max(1, _CHUNK // each)
    for number in range(math.ceil(places / size)):
        yield slice(number * size, (number + 1) * size)


def _clip(site: Site, grid: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Frames, rows and columns of a call's video tokens.

    Raises:
        ValueError: They aren't those of a clip.
    """
    if grid is None or len(grid) != 3 or grid[0] < 2:
        what = "an unknown grid" if grid is None else " x ".join(map(str, grid))
        raise ValueError(
            f"enhance_a_video: the tokens of {site.name} make {what}, and frames that see each "
            "other are needed: a video model, and a clip of two latent frames or more"
        )
    return grid[0], grid[1], grid[2]
