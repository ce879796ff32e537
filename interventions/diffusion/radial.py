"""Radial Attention: a video's tokens attend to fewer tokens the further away in time these are.

With n tokens a frame, frames at distance d, g = bit_length(d) and D = 2^bit_length(n) / 2^g, tokens
at places r and c of their frames attend to each other if

    |r - c| <= max(decay D, block), or d <= 1;  and, where D < 128, d mod int(128 / D) = 0

so the window halves whenever the distance doubles, and of far frames only some are seen. Text
attends to everything and is seen by everything, and so are, with ``sink``, the tokens of the first
frame. Masks are made of whole blocks: a block is computed if, of its columns that any of its rows
sees, more than 60 % are seen by more than a third of its rows.

Li et al., arXiv 2506.19852, section 4; code mit-han-lab/radial-attention@72788d4, ``attn_mask.py``,
whose mask is the default here, block by block, because the paper's figures were made with it. It
differs from the paper's equation: the window is never narrower than a block, has a factor
``decay``, and is full for neighbours; far frames are seen within a window, not at the same place
alone; HunyuanVideo has no sink. Two peculiarities of the code are kept: where frames begin inside a
block, a pair covers ceil(n / block) blocks from the one in which the frame begins, so the last few
tokens of a frame may go without that pair; and the threshold 128 is the same for other block sizes.
One isn't: sequences that aren't whole blocks, on which the code fails, end in a shorter block here,
which is dense like text.

Dense first layers and steps are the scripts'. The paper's longer clips need its LoRAs, which are
loaded as any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from regaze.hooks.checks import check_choice, check_flag, check_number, shown
from regaze.hooks.diffusion.blocks import KERNELS, Blocks
from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.interventions.base import Preset, register
from regaze.interventions.diffusion.sparse import Part, Sparse, clip_of, image_first
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen

_THRESHOLD = 128
_SCRIPTS = "mit-han-lab/radial-attention@72788d4 scripts"
_CODE: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": {"decay": 0.2, "sink": True, "dense_layers": 1},
    "HunyuanVideoTransformer3DModel": {"decay": 0.95, "sink": False, "dense_layers": 0},
}
"""The scripts' settings by the class of the denoiser."""


@register
@dataclass(frozen=True)
class RadialAttention(ByLayers):
    """Video attention whose window shrinks with the distance in time.

    Attributes:
        decay: Factor of the window. By default the scripts' for Wan (0.2) and HunyuanVideo (0.95);
            other models must be given one.
        sink: True if all tokens see all of the first frame; by default as in the code for
            HunyuanVideo (no), and as in the paper elsewhere.
        dense_layers: Number of first layers that stay dense; by default 1 for Wan, else 0.
        layers: Layers, as in `Guided.layers`; by default all layers of self- and joint attention.
        start: Share of the sampling steps before which attention is dense; 12 of the scripts' 50.
        stop: Share of the sampling steps at which it ends.
        block: Tokens of a block, the code's 128.
        kernel: The kernel of the blocks: "gather" (the stock kernel over gathered keys), "flex"
            (FlexAttention, compiled at the first call of each shape), or "auto": flex on CUDA.
    """

    name: ClassVar[str] = "radial"
    summary: ClassVar[str] = "faster video attention: windows shrink with the distance in time"
    paper: ClassVar[str] = "arXiv 2506.19852"
    acts_on: ClassVar[str] = "diffusers pipelines"
    presets: ClassVar[Mapping[str, Preset]] = {
        "wan": Preset({"decay": 0.2, "sink": True, "dense_layers": 1, "start": 0.24}, _SCRIPTS),
        "hunyuanvideo": Preset(
            {"decay": 0.95, "sink": False, "dense_layers": 0, "start": 0.24}, _SCRIPTS
        ),
    }

    decay: float | None = None
    sink: bool | None = None
    dense_layers: int | None = None
    layers: tuple[str | int, ...] | None = None
    start: float = 0.24
    stop: float = 1.0
    block: int = 128
    kernel: str = "auto"

    def check(self) -> None:
        """Check the fields' domains."""
        if self.decay is not None:
            check_number(self.name, "decay", self.decay, low=0)
        if self.sink is not None:
            check_flag(self.name, "sink", self.sink)
        dense = self.dense_layers
        if dense is not None and (type(dense) is not int or dense < 0):
            raise ValueError(f"radial: dense_layers must be a number of layers, got {shown(dense)}")
        if type(self.block) is not int or self.block < 1:
            raise ValueError(f"radial: block must be a number of tokens, got {shown(self.block)}")
        check_choice(self.name, "kernel", self.kernel, KERNELS)
        check_where(self.name, self.layers, self.start, self.stop, empty=True)

    def idle(self) -> RadialAttention:
        """The same with all layers dense."""
        return replace(self, layers=())

    def literal(self) -> AttendForm:
        """Dense attention whose logits outside of the mask are -inf."""

        def edit(m: Map) -> Tensor:
            frames, rows, columns = m.grid
            total = m.logits.shape[-1]
            kept = self.blocks(frames, rows * columns, total).mask()
            # The mask's order has the picture first.
            place = image_first(m.image, total).argsort()
            seen = kept[0][place][:, place].to(m.logits.device)
            return (m.logits + m.bias).masked_fill(~seen, -torch.inf).softmax(-1)

        return AttendForm(self.layers or (), edit, self.start, self.stop)

    def resolve(self, host: Host) -> RadialAttention:
        """Fill in the code's settings and the layers.

        Raises:
            ValueError: No decay was published for this model, or it has no such layers.
        """
        code = _CODE.get(host.model, {"sink": True, "dense_layers": 0})
        found = replace(
            self,
            **{name: value for name, value in code.items() if getattr(self, name) is None},
        )
        if found.decay is None:
            raise ValueError(
                f"radial: no decay was published for {host.model}; give one, such as 0.2 (Wan's) "
                "or 0.95 (HunyuanVideo's)"
            )
        return replace(found, layers=tuple(site.name for site in found._sites(host)))

    def bind(self, host: Host) -> Sparse:
        """Make the edit."""
        return Sparse(
            tuple(self._sites(host)),
            self.start,
            self.stop,
            self._part,
            self.kernel,  # type: ignore[arg-type]
        )

    def _sites(self, host: Host) -> list[Site]:
        every = [site.name for site in host.layers]
        found = chosen(self.name, host, every if self.layers is None else self.layers)
        dense = self.dense_layers or 0
        return [site for site in found if site.layer is None or site.layer >= dense]

    def _part(self, call: Call) -> Part:
        image = call.image()
        frames, rows, columns = clip_of(self.name, call, image)
        total = call.query.shape[2]
        blocks = self.blocks(frames, rows * columns, total)
        order = None if image.start == 0 else image_first(image, total)[None]
        return Part(blocks, order)

    def blocks(self, frames: int, places: int, total: int) -> Blocks:
        """The blocks that are computed, the picture's tokens first.

        Args:
            frames: Frames of the clip.
            places: Tokens of a frame.
            total: Tokens in all, with text.
        """
        return _blocks(frames, places, total, float(self.decay or 0), bool(self.sink), self.block)


@cache
def _blocks(frames: int, places: int, total: int, decay: float, sink: bool, size: int) -> Blocks:
    keep = block_mask(frames, places, total, decay, sink, size)
    return Blocks(keep[None], size, total)


def block_mask(
    frames: int, places: int, total: int, decay: float, sink: bool, size: int = 128
) -> Tensor:
    """The blocks that are computed, "R R" bool for R = ceil(total / size).

    Args:
        frames: Frames of the clip, whose tokens come first, frame after frame.
        places: Tokens of a frame.
        total: Tokens in all, with text and padding.
        decay: Factor of the window.
        sink: True if the first frame is seen by all.
        size: Tokens of a block.
    """
    covered = -(-places // size)
    # Frames that begin inside a block may reach over the end.
    number = max(-(-total // size), (frames - 1) * places // size + covered)
    keep = torch.zeros(number, number, dtype=torch.bool, device="cpu")
    border = frames * places // size
    keep[border:] = True
    keep[:, border:] = True
    pairs: dict[tuple[int, int, int], Tensor] = {}
    for row in range(frames):
        for column in range(frames):
            reach = window(abs(row - column), places, decay, size)
            if sink and column == 0:
                reach = places
            if reach < 0:
                continue
            top, left = row * places, column * places
            at = top % size, left % size, reach
            if at not in pairs:
                pairs[at] = _pair_blocks(*at, places, size, covered)
            part = keep[top // size :, left // size :][:covered, :covered]
            part |= pairs[at]
    number = -(-total // size)
    return keep[:number, :number]


def window(distance: int, places: int, decay: float, size: int = 128) -> int:
    """The most places that tokens in frames at a distance may lie apart; -1: none are seen."""
    length = 2.0 ** (places.bit_length() - distance.bit_length())
    if length < _THRESHOLD and distance % int(_THRESHOLD / length):
        return -1
    return places if distance <= 1 else int(max(length * decay, size))


def _pair_blocks(top: int, left: int, reach: int, places: int, size: int, covered: int) -> Tensor:
    """The blocks of a frame pair that begins at (top, left) inside its first block."""
    # Of each column of the pair: how many rows of each block see it.
    column = torch.arange(covered * size, device="cpu") - left
    first = torch.arange(covered, device="cpu")[:, None] * size - top
    low = torch.maximum(first.clamp(min=0), column - reach)
    high = torch.minimum((first + size).clamp(max=places) - 1, column + reach)
    inside = (column >= 0) & (column < places)
    count = torch.where(inside, (high - low + 1).clamp(min=0), 0).view(covered, covered, size)
    dense = (3 * count > size).sum(-1)
    return 10 * dense > 6 * (count > 0).sum(-1)
