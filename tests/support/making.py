"""Specs that act on tiny pipelines, made when a test asks: some write files, or fit a pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flows import random_flow
from scenes import FLOW_FRAMES, SCENES, stage
from tiny_pipelines import COLUMNS, HEIGHT, POOLED, WIDTH, noise

import regaze
from regaze.interventions import PARO, FlowWarp, Intervention, PrimeComposer, Regions
from regaze.interventions.diffusion.paro_plan import Identity, Plan, packed
from regaze.interventions.diffusion.paro_survey import best_blocks

SCALE = 1.5
TOKENS = (1, 3)
TEXT_LENGTH = 7
"""Tokens of further prompts, which differ from the prompt's own in number."""
HEAD_SHARES = {"L1": [0], "L2": {"0": 0.3, "1": 0.9}}
MASK = [[row < 4 or column > 3 for column in range(COLUMNS)] for row in range(HEIGHT)]
PLACE = [[row > 3 and column > 1 for column in range(COLUMNS)] for row in range(HEIGHT)]
"""A part of the picture, whose edges are those of tokens."""
MOVED: dict[str, tuple[Any, ...]] = {
    "sd3": (1, 2), "sd35": (0, 1), "flux": (1, 2), "pixart": ("blocks.(1|2)",),
    "wan": ("blocks.1",), "qwen": (1, 2),
}  # fmt: skip
"""Layers of one resolution; elsewhere the first and last ones of a U-Net."""


@dataclass(frozen=True)
class Made:
    """A method's spec for each scene.

    Attributes:
        method: The method's class.
        make: Makes the spec for a scene.
    """

    method: type[Intervention]
    make: Callable[[str], Any]

    def __call__(self, scene: str) -> Any:
        """The spec for a scene."""
        return self.make(scene)


def of(method: type[Any], *args: Any, **fields: Any) -> Made:
    """The same in all scenes."""
    return Made(method, lambda scene: method(*args, **fields))


def perturbing(method: type[Any], **fields: Any) -> Made:
    """Guidance that perturbs a scene's layers."""
    return Made(method, lambda scene: method(SCALE, **{"layers": SCENES[scene].perturb, **fields}))


def embedded(method: type[Any], **fields: Any) -> Made:
    """A method that reads a further prompt, given as embeddings."""
    return Made(method, lambda scene: method(**fields, embeddings=embeddings()))


def embeddings(prompts: int = 1) -> dict[str, torch.Tensor]:
    """Further prompts."""
    return {
        "text": noise(prompts, TEXT_LENGTH, WIDTH, seed=9),
        "pooled": noise(prompts, POOLED, seed=8),
    }


def move(method: type[Any], scene: str, **more: Any) -> Any:
    """A method that moves latents in every step."""
    settings: dict[str, Any] = {
        "tokens": TOKENS, "layers": MOVED.get(scene, ("down_blocks.0", "up_blocks.1")),
        "cut": "last", "stop": 1.0,
    }  # fmt: skip
    return method(**settings | more)


def moving(method: type[Any], **more: Any) -> Made:
    """A method that moves latents, in each scene's layers."""
    return Made(method, lambda scene: move(method, scene, **more))


def compose(rows: int = HEIGHT, columns: int = COLUMNS, **settings: Any) -> PrimeComposer:
    """A composition of given latents, each part of it in another share of three steps."""
    names = {"background": 11, "object": 12, "pasted": 13}
    latents = {name: noise(4, 4, rows, columns, seed=seed) for name, seed in names.items()}
    thing = [[1 < row < 6 and 0 < column < 4 for column in range(columns)] for row in range(rows)]
    fields: dict[str, Any] = {
        "latents": latents, "mask": thing, "box": (0.0, 0.1, 0.8, 0.9), "subject": (1, 3),
        "correlate": 0.4, "paste": 0.2, "keep": 0.6,
    }  # fmt: skip
    return PrimeComposer(**fields | settings)


def _two_regions(scene: str) -> Regions:
    parts = [((0, 0, 0.5, 0.5), "one"), (MASK, "two")]
    text = {"text": noise(2, TEXT_LENGTH, WIDTH, seed=9)}
    return Regions(parts, 0.3, stop=1.0, overlap="all", embeddings=text)


def _short_region(scene: str) -> Regions:
    """A region whose text is shorter than the prompt's, and apart in some blocks only."""
    text = {"text": noise(1, 3, WIDTH, seed=9)}
    return Regions([((0, 0, 0.5, 0.5), "one")], 0.3, stop=1.0, every=(2, 2), embeddings=text)


def plan(pipe: Any, steps: int = 3) -> Plan:
    """A calibration of a clip of 3 x 4 x 3 tokens, with blocks and orders drawn at random."""
    made = torch.Generator().manual_seed(0)
    sites = [site for site in regaze.hooks.diffusion.sites(pipe) if site.layer is not None]
    names = ("fhw", "hwf", "wfh", "whf", "hfw", "fwh")
    orders, masks = {}, {}
    for number, site in enumerate(sites):
        orders[site.name] = [names[(number + head) % 6] for head in range(site.heads)]
        sums = torch.rand(3, site.heads, 9, 9, generator=made)
        masks[site.name] = packed(torch.stack([best_blocks(group, 0.4) for group in sums]))
    identity = Identity.of(pipe.transformer, sites[0].name)
    return Plan(identity, (3, 4, 3), steps, 4, 0.4, orders, masks)


def _of_a_plan(scene: str) -> PARO:
    path = Path(os.environ["XDG_CACHE_HOME"]) / f"{scene}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        plan(stage(scene)[0]).write(path)
    return PARO(plan=str(path))


composed = Made(PrimeComposer, lambda scene: compose())
regions = Made(Regions, _two_regions)
short_region = Made(Regions, _short_region)
planned = Made(PARO, _of_a_plan)
flowing = Made(FlowWarp, lambda scene: FlowWarp(flow=random_flow(FLOW_FRAMES)))
