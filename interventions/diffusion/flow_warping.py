"""A clip's flow at work: attention of every frame with the rows of the frame before, moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.frames import Runs, Way, carry, mix, splat_columns
from regaze.hooks.diffusion.warp import Corners, corners, pooled, to_tokens, warp
from regaze.interventions.diffusion.flow import Flow

if TYPE_CHECKING:
    from regaze.interventions.diffusion.flow_warp import FlowWarp

EMPTY = 1e-6
"""A warped row of which less than this is left stays as it was."""


class Warped:
    """A clip's flow, at work on the calls of a denoiser.

    Tensors of a call are stacked "O F I H N D": branches of guidance, frames, images per prompt.
    """

    def __init__(self, spec: FlowWarp, flow: Flow) -> None:
        self.spec, self.frames = spec, flow.frames
        self.flow = torch.from_numpy(flow.backward).double()
        self.visible = None if flow.visible is None else torch.from_numpy(flow.visible)
        self._ways: dict[Any, Way] = {}

    def attend(self, call: Call) -> Tensor:
        """The head outputs of a call, "B H N D", with all frames but the first edited."""
        image = call.image()
        if image.start >= image.stop:
            return call.output
        runs = Runs(call, self._split(call))
        way = self._way(self._grid(call), call.query)
        output = call.output.unflatten(0, runs.split).clone()
        rows = output[:, :, :, :, runs.image]  # The text's keep their own map.
        if self.spec.recursive:
            self._chain(rows, runs, way)
        else:
            fetched = self._fetched(rows[:, 1:], runs, way)
            rows[:, 1:] = mix(rows[:, 1:], fetched, way)
        edited: Tensor = output.flatten(0, 2)
        return edited

    def _fetched(self, own: Tensor, runs: Runs, way: Way) -> Tensor:
        """Rows of all frames but the first under the warped map before them."""
        maps, value = slice(-1), runs.value[:, 1:]
        if self.spec.axis == "query":
            return carry(warp, runs(maps, value), way)
        kept, moved = (
            carry(warp, runs(maps, splat_columns(x, runs.columns, way)), way)
            for x in (torch.ones_like(value), value)
        )
        return torch.where(kept > EMPTY, moved / kept.clamp(min=EMPTY), own)

    def _chain(self, rows: Tensor, runs: Runs, way: Way) -> None:
        """Edit rows by the edited map of the frame before, A~, frame by frame.

        ``A~_f V_f`` needs ``A~_{f-1} V_f``, and so on down to the first frame. So frame g's map is
        run once on the values of *every* later frame, and what is carried along is A~_g V_f of all
        f > g: no map is stored.
        """
        carried: Tensor | None = None
        for frame in range(1, self.frames):
            earlier = runs(slice(frame - 1, frame), runs.value[:, frame:])
            if carried is not None:
                before = way.of(frame - 1)
                earlier = mix(earlier, carry(warp, carried, before), before)
            here, now = way.of(frame), slice(frame, frame + 1)
            rows[:, now] = mix(rows[:, now], carry(warp, earlier[:, :1], here), here)
            carried = earlier[:, 1:]

    def _split(self, call: Call) -> tuple[int, int, int]:
        """The branches, frames and images per prompt that the batch divides into."""
        samples = call.samples()
        # A clip's frames are prompts of one batch, or what the denoiser makes of one sample.
        frames = samples.frames if call.layout.frames else samples.prompts
        if frames != self.frames:
            raise ValueError(
                f"flow_warp: the flow is that of {self.frames} frames, and the pipeline paints "
                f"{frames}; give it a list with one prompt (and one image) per frame"
            )
        if call.layout.frames:
            return samples.branches * samples.prompts * samples.images, frames, 1
        return samples.branches, frames, samples.images

    def _grid(self, call: Call) -> tuple[int, int]:
        """The token grid of a call, once it is known to fit the flow."""
        image, finest = call.image(), call.layout.finest
        grid = call.layout.grid(call.site, image.stop - image.start)
        if grid is None or finest is None or len(grid) > 2 and grid[0] > 1:
            known = "isn't known" if grid is None else f"has {grid[0]} frames in one sequence"
            raise ValueError(
                f"flow_warp: the token grid of {call.site.name} {known}; flow is warped where each "
                "picture attends to itself"
            )
        height, width = self.flow.shape[1:3]
        rows, columns = finest[-2:]
        if abs(rows * width - columns * height) > max(height, width) / 2:
            raise ValueError(
                f"flow_warp: a flow of {width} x {height} pixels doesn't fit pictures of {columns} "
                f"x {rows} latent cells: their shapes differ"
            )
        return grid[-2], grid[-1]

    def _way(self, grid: tuple[int, int], like: Tensor) -> Way:
        """The flow on a grid, in the dtype and on the device of the call."""
        key = (grid, like.dtype, like.device)
        if key not in self._ways:
            threshold = self.spec.threshold
            length = self.flow.norm(dim=-1)
            moving = length >= 0 if threshold is None else length > threshold
            flow, moves = to_tokens(self.flow, grid, moving)
            still = float(self.spec.static == "previous")
            weight = torch.where(moves, self.flow.new_tensor(self.spec.weight), still)
            if self.visible is not None:
                weight = weight * (pooled(self.visible.double(), grid) >= 0.5)
            source, share = corners(flow)
            share, weight = (x.to(like.dtype).to(like.device) for x in (share, weight.flatten(1)))
            self._ways[key] = Way(Corners(source.to(like.device), share), weight)
        return self._ways[key]
