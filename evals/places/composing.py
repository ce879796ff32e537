"""Compose one picture under several conditions, from several noises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from PIL import Image

from regaze.evals.pictures.grid import Block, draw
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress, quiet
from regaze.hooks.attach import attach
from regaze.interventions import PrimeComposer
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.arranging import Arranged, arrange, opened

_MASK, _BOX = np.array([235, 60, 60], np.float64), np.array([240, 200, 60], np.float64)


@dataclass(frozen=True)
class Asked:
    """The parts of a composition.

    Attributes:
        prompt: The whole picture's description.
        background: A picture's path.
        object: The path of what goes into it.
        mask: The path of a mask of it; None: the opaque part.
        box: The object's place, in shares of the background; None: the place that it has.
        subject: The prompt's words for it.
    """

    prompt: str
    background: str
    object: str
    mask: str | None = None
    box: tuple[float, ...] | None = None
    subject: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Composed:
    """Pictures of one condition.

    Attributes:
        title: The condition's.
        specs: The condition's interventions as they were resolved, JSON-able.
        pictures: One for each seed.
        firing: The interventions' firing; None for the unedited pipeline.
    """

    title: str
    specs: Sequence[Mapping[str, Any]]
    pictures: Sequence[Image.Image]
    firing: Mapping[str, Any] | None

    @property
    def silent(self) -> bool:
        """True if an intervention never acted."""
        return self.firing is not None and not self.firing["fired"]


def compose(
    loaded: LoadedPipeline,
    conditions: Mapping[str, Condition],
    asked: Asked,
    seeds: Sequence[int],
    arguments: Mapping[str, Any],
    *,
    progress: Progress = quiet,
) -> tuple[Arranged, list[Composed]]:
    """Compose under each condition.

    Args:
        loaded: A pipeline with a U-Net; left as it was found.
        conditions: By their titles; `PrimeComposer` gets what is asked for.
        asked: The placements to compose.
        seeds: Seeds of the noise.
        arguments: Arguments of the pipeline's call.
        progress: Called with a title, conditions done and conditions in all.

    Returns:
        What was arranged, in pixels, and what each condition made of it.

    Raises:
        ValueError: A condition, a picture or an argument doesn't fit.
    """
    painter = Painter(loaded.pipeline, arguments)
    filled = {
        title: [_with(spec, asked) for spec in condition.specs]
        for title, condition in conditions.items()
    }
    # Everything that can be refused is refused before the first picture.
    for specs in filled.values():
        with attach(loaded.pipeline, *specs):
            pass
    arranged = _arranged(loaded.pipeline, asked, arguments)
    shots, found = [Shot(asked.prompt, seed) for seed in seeds], []
    for number, (title, specs) in enumerate(filled.items()):
        progress(title, number, len(filled))
        with attach(loaded.pipeline, *specs) as attached:
            pictures = [one.image for one in painter.paint(shots)]
            resolved = [cast(Intervention, spec).to_dict() for spec in attached.specs]
        firing = attached.report().to_dict() if specs else None
        found.append(Composed(title, resolved, pictures, firing))
        progress(title, number + 1, len(filled))
    return arranged, found


def _with(spec: Intervention, asked: Asked) -> Intervention:
    """A spec with what is asked for, if it composes."""
    if not isinstance(spec, PrimeComposer):
        return spec
    return replace(
        spec, background=asked.background, object=asked.object, mask=asked.mask, box=asked.box,
        subject=spec.subject or asked.subject,
    )  # fmt: skip


def _arranged(pipeline: Any, asked: Asked, arguments: Mapping[str, Any]) -> Arranged:
    """The parts of a composition, in pixels of the picture to make."""
    own = pipeline.unet.config.sample_size
    sides = own if isinstance(own, (list, tuple)) else (own, own)
    factor = int(pipeline.vae_scale_factor)
    width = int(arguments.get("width") or sides[1] * factor)
    height = int(arguments.get("height") or sides[0] * factor)
    ground, thing = (
        opened(PrimeComposer.name, name, getattr(asked, name)) for name in ("background", "object")
    )
    box: Any = asked.box
    return arrange(PrimeComposer.name, ground, thing, asked.mask, box, (width, height))


def draw_strip(
    arranged: Arranged,
    composed: Sequence[Composed],
    seeds: Sequence[int],
    title: str,
    cell: int | None = None,
) -> Image.Image:
    """The background, the object pasted, where it goes, and what each condition made of it.

    Args:
        arranged: In pixels.
        composed: The conditions' pictures.
        seeds: A row each.
        title: Above them.
        cell: Longer side of a picture, in pixels.
    """
    first = [arranged.background, arranged.pasted, _marked(arranged)]
    heads = ["background", "pasted", "mask", *(one.title for one in composed)]
    rows = [[*first, *(one.pictures[n] for one in composed)] for n in range(len(seeds))]
    return draw(heads, [Block(title, [f"seed {seed}" for seed in seeds], rows)], cell=cell)


def _marked(arranged: Arranged) -> Image.Image:
    """The background with the object's mask and its box tinted."""
    pixels = np.asarray(arranged.background, np.float64)
    for where, tint in ((arranged.region & ~arranged.mask, _BOX), (arranged.mask, _MASK)):
        pixels = np.where(where.numpy()[..., None], (pixels + tint) / 2, pixels)
    return Image.fromarray(pixels.astype(np.uint8))
