"""Flows for the tiny pipelines."""

from __future__ import annotations

import numpy as np
from tiny_pipelines import COLUMNS, HEIGHT
from torch import Tensor

from regaze.hooks.diffusion import Layout, Site
from regaze.hooks.diffusion.literal_maps import Map
from regaze.interventions import FlowWarp
from regaze.interventions.diffusion import flow as flows

PIXELS = 8
"""Pixels of a flow per latent cell."""


def random_flow(frames: int, seed: int = 0) -> np.ndarray:
    """A flow in which half of the picture moves, each token by its own vector, up to the edge."""
    rng = np.random.default_rng(seed)
    cells = rng.uniform(-20, 20, (frames - 1, HEIGHT // 2, COLUMNS // 2, 2))
    cells[rng.random(cells.shape[:3]) < 0.4] = 0.1
    size = 2 * PIXELS
    flow = cells.repeat(size, 1).repeat(size, 2)
    flow[:, :3] = 0  # The edge of the first row of tokens stands still.
    return flow.astype(np.float32)


def edit_maps(
    weights: Tensor,
    image: slice,
    grid: tuple[int, ...],
    spec: FlowWarp,
    split: tuple[int, int, int],
) -> Tensor:
    """Maps "B H N N" edited as `FlowWarp` says, of whatever they are made."""
    site = Site("layer", "self", "block", 0, weights.shape[1], "image")
    layout = Layout(grid, 0, halves=False)
    at = Map(site, weights, weights, weights, weights, weights, 1.0, image, split, layout)
    return spec.literal_maps(at, flows.read(spec.flow))
