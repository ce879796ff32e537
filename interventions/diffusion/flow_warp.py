"""FlowWarp: attend in each frame of a clip as in the frame before, moved along the optical flow.

The frames of a clip are painted as one batch from the same noise. In chosen self-attention layers,
with A_f = softmax(Q_f K_f' / sqrt d) of frame f, R_f the bilinear warp along the flow from frame f
to f - 1, and M_f its binarised mask (tokens that move), the map becomes

    A~_f = M_f ((1 - weight) A_f + weight R_f A_{f-1}) + (1 - M_f) S_f

with S_f = A_{f-1} (``static="previous"``) or A_f (``static="own"``). The first frame keeps its own.
Warping rows is linear, so ``(R_f A_{f-1}) V_f = R_f (A_{f-1} V_f)``: one more run of the stock
kernel, with the queries and keys of the frame before, and its output warped; no map is built.

Method: FloAtControlNet, arXiv 2411.15028, and US 2026/0051101 A1, claims 1 to 3 (linear
combination; binarised flow map). There is no public code, and these are not said anywhere; here
they are fields: the weight, the layers, the steps, the threshold of the mask, what still tokens
take, whether rows alone are warped or columns too, whether A_{f-1} is the edited map.

With columns warped too the map is ``R_f A_{f-1} R_f'`` with its rows renormalised: the values are
splatted by the adjoint R_f' first, and what the splatted ones give is divided out. Flow counts as
zero where nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.checks import check_choice, check_number
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.works import Attend
from regaze.interventions.base import register
from regaze.interventions.diffusion import flow as flows
from regaze.interventions.diffusion.flow import Flow
from regaze.interventions.diffusion.flow_maps import on_tokens, seen, warp_matrix
from regaze.interventions.diffusion.flow_warping import EMPTY, Warped
from regaze.interventions.diffusion.where import ByLayers, check_where, chosen


@register
@dataclass(frozen=True)
class FlowWarp(ByLayers):
    """Flow-warped self-attention.

    Attributes:
        flow: The clip's backward flow: a file or folder as in
            `regaze.interventions.diffusion.flow`; in Python also an array "F-1 H W 2" or a `Flow`,
            which is kept in a cache under its hash. Any size of the pictures' shape will do.
        weight: Share of the warped map where something moves, in [0, 1]; 0 is a no-op, whatever
            ``static`` says. Half by default, because the patent combines both maps.
        layers: Layers: numbers, "L7" or parts of module paths, as for guidance. By default the
            self-attention of a U-Net's up blocks, or the second half of a transformer's layers.
        start: Share of the sampling steps at which it begins.
        stop: Share of the sampling steps at which it ends.
        threshold: A pixel moves if its flow is longer than this, in the flow's pixels; a token, if
            half of its pixels do. None: all tokens count as moving.
        static: The map of tokens that don't move: that of the frame before ("previous", because
            the paper claims a background without flicker), or their own ("own").
        axis: The warped axis: where a row looks from ("query"), or its columns too, renormalised
            ("both").
        recursive: True if the map that is warped is the edited one of the frame before, so that
            what the first frame sees reaches the last one within a step. Exact, without stored
            maps, for (F - 1) / 2 more runs of the kernel over all F frames in place of one.
    """

    name: ClassVar[str] = "flow_warp"
    summary: ClassVar[str] = "attend in each frame as in the one before, moved along the flow"
    paper: ClassVar[str] = "arXiv 2411.15028"
    acts_on: ClassVar[str] = "diffusers pipelines"

    flow: Any = None
    weight: float = 0.5
    layers: tuple[str | int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    threshold: float | None = 0.5
    static: str = "previous"
    axis: str = "query"
    recursive: bool = False

    def __post_init__(self) -> None:
        if self.flow is not None and not isinstance(self.flow, str):
            object.__setattr__(self, "flow", _kept(self.flow))
        super().__post_init__()

    def check(self) -> None:
        """Check the fields' domains."""
        check_number("flow_warp", "weight", self.weight, low=0, high=1)
        check_where("flow_warp", self.layers, self.start, self.stop)
        check_choice("flow_warp", "static", self.static, ("previous", "own"))
        check_choice("flow_warp", "axis", self.axis, ("query", "both"))
        if self.threshold is not None:
            check_number("flow_warp", "threshold", self.threshold, low=0)
        if self.recursive and self.axis == "both":
            raise ValueError(
                "flow_warp: recursive goes with axis=query only: columns warped again and again "
                "would need the renormalised map of every frame before"
            )

    def idle(self) -> FlowWarp:
        """The same with nothing of the warped map."""
        return replace(self, weight=0.0)

    def literal(self) -> AttendForm | None:
        """The maps A~ of the formula above; None as long as there is no flow."""
        if self.flow is None:
            return None
        flow = flows.read(self.flow)
        return AttendForm(
            self.layers or (),
            lambda m: self.literal_maps(m, flow),
            self.start,
            self.stop,
            flow.frames,
        )

    def literal_maps(self, m: Map, flow: Flow) -> Tensor:
        """The edited maps "B H N N" of all frames of a clip, one after the other."""
        _, rows, columns = m.grid
        a = m.weights.double().unflatten(0, m.split)
        done = a.clone()
        for f in range(1, a.shape[1]):
            moved, moves = on_tokens(flow.backward[f - 1], rows, columns, self.threshold)
            r = warp_matrix(moved).to(a.device)
            own = a[:, f][..., m.image, :]
            before = (done if self.recursive else a)[:, f - 1][..., m.image, :]
            warped = r @ before
            if self.axis == "both":
                warped = warped.clone()
                warped[..., m.image] = warped[..., m.image] @ r.T
                total = warped.sum(-1, keepdim=True)
                warped = torch.where(total > EMPTY, warped / total, own)
            mixed = (1 - self.weight) * own + self.weight * warped
            # With both axes, what a still row looked at may have moved.
            copied = before if self.axis == "query" else warped
            still = own if self.static == "own" else copied
            new = torch.where(_rows(moves, a), mixed, still)
            if flow.visible is not None:
                new = torch.where(_rows(seen(flow.visible[f - 1], rows, columns), a), new, own)
            done[:, f][..., m.image, :] = new
        edited: Tensor = done.flatten(0, 2).to(m.weights)
        return edited

    def resolve(self, host: Host) -> FlowWarp:
        """Choose the layers, by their full names."""
        return replace(self, layers=tuple(site.name for site in self._sites(host)))

    def bind(self, host: Host) -> Attend:
        """Read the flow and make the edit; a weight of 0 is a no-op."""
        if not self.weight:
            return Attend()
        if self.flow is None:
            raise ValueError(
                "flow_warp: flow is missing: give the clip's backward flow, a file (.npy, .npz, "
                ".flo) or in Python an array (frames - 1, height, width, 2)"
            )
        warped = Warped(self, flows.read(self.flow))
        return _ByPlace(tuple(self._sites(host)), self.start, self.stop, warped.attend)

    def _sites(self, denoiser: Host) -> list[Site]:
        """The layers to edit.

        Raises:
            ValueError: One doesn't exist, or isn't attention within a picture.
        """
        found = chosen("flow_warp", denoiser, self.layers or _default_layers(denoiser))
        for site in found:
            if site.kind == "temporal":
                raise ValueError(
                    f"flow_warp: {site.name} attends over frames, not within a picture"
                )
        return found


class _ByPlace(Attend):
    """An edit that moves what tokens see along the flow."""

    places: ClassVar[bool] = True


def _default_layers(denoiser: Host) -> list[str]:
    decoder = [site.name for site in denoiser.layers if site.block.startswith("up_blocks.")]
    return decoder or [site.name for site in denoiser.layers[len(denoiser.layers) // 2 :]]


def _kept(flow: Any) -> str:
    """The path of a flow that was given as such or as an array."""
    if isinstance(flow, Path):
        return str(flow)
    try:
        return str(flows.keep(flow if isinstance(flow, Flow) else Flow(np.asarray(flow))))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"flow_warp: {error}") from None


def _rows(truth: NDArray[np.bool_], like: Tensor) -> Tensor:
    """One truth value per row of a map."""
    return torch.from_numpy(truth.reshape(-1, 1)).to(like.device)
