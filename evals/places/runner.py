"""Put things at their places under several conditions and keep the pictures.

Every condition begins with the same noise; the baseline is the prompt with nothing attached. With
``@wrong``, a control, prompts go into each other's boxes, and what is composed is the next item's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import save_file

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.world_work import Made, WorldWork
from regaze.evals.places.task import Places, PlaceSource
from regaze.evals.places.world import Placement
from regaze.evals.runs import driver, files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Plan
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.interventions import PrimeComposer, Regions
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.arranging import arrange
from regaze.interventions.diffusion.composed_latents import NAMES
from regaze.interventions.diffusion.places import stored
from regaze.interventions.diffusion.unet_inversion import inverted

_LATENTS = "latents"
_EMPTY: Mapping[str, Any] = {"latents": None, "mask": None, "box": None}
OBJECT = ("object",)
"""As PrimeComposer's subject: the words that name what is put there."""


def run(
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    source: PlaceSource,
    *,
    out: Path,
    arguments: Mapping[str, Any],
    batch_size: int = 8,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Paint all placements under all conditions, or what isn't on the disk yet.

    Args:
        loaded: One of the painting world's painters; left as it was found.
        conditions: The conditions to compare; the unedited pipeline is added in front where it is
            missing. `PrimeComposer` gets each item's pictures, mask and box, and with
            ``subject=object`` the words of its object; `Regions` its boxes and prompts.
        source: The source of the placements.
        out: Directory of the study: one folder per condition.
        arguments: Arguments of the pipeline's call.
        batch_size: Pictures of the unedited pipeline to paint at once.
        progress: Called with a condition's label, pictures done and pictures in all.
        world: This process among those that share the work.

    Raises:
        ValueError: A condition doesn't fit the pipeline or the placements, or the directory holds
            pictures made with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    work = Placing(Places(source, out), loaded, arguments, batch_size)
    noted = source.to_dict()
    return driver.run(work, conditions, out=out, source=noted, progress=progress, world=world)


class Placing(WorldWork[Places]):
    """Placements to paint."""

    folder = "pictures"

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, but for each item's own.

        Raises:
            ValueError: It can't act on all of the placements.
        """
        if condition.image == "blank":
            raise ValueError(f"{condition.label}: @blank is for models that read an image")
        for item in self.items:
            if self.task.asked(item).thing is None and _composes(condition.specs):
                raise ValueError(
                    f"{condition.label}: regions have no object to compose; choose --kind same "
                    "and --kind sketch"
                )
        given = [self._filled(spec, self.items[0], "given") for spec in condition.specs]
        with attach(self.pipeline, *given) as attached:
            found = [cast(Intervention, spec) for spec in attached.specs]
        return tuple(map(_emptied, found, condition.specs))

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """The kind of places given, where they aren't the prompt's own."""
        return {} if condition.image == "given" else {"places": condition.image}

    def make(self, plan: Plan, batch: Sequence[Item], wanted: Sequence[Item]) -> Iterator[Made]:
        """Paint placements, the unedited ones of a batch at once."""
        if not plan.specs:
            for item, picture in zip(batch, self._painted(batch), strict=True):
                yield Made(item, picture, None)
            return
        for item in wanted:
            specs = [self._filled(spec, item, plan.condition.image) for spec in plan.specs]
            with attach(self.pipeline, *specs) as attached:
                (picture,) = self._painted([item])
            yield Made(item, picture, attached.report().to_dict())

    def _painted(self, batch: Sequence[Item]) -> list[Image.Image]:
        noise = [torch.Generator().manual_seed(self.task.noise_seed(item)) for item in batch]
        prompts = [item.prompt for item in batch]
        found = self.pipeline(prompts, generator=noise, **self.arguments).images
        return [picture.convert("RGB") for picture in found]

    def _filled(self, spec: Intervention, item: Item, image: str) -> Intervention:
        """A spec with what an item has of its own."""
        asked = self.task.asked(item)
        if isinstance(spec, Regions):
            texts = [f"a {kind}" for kind, _ in asked.placed]
            texts = [*texts[1:], texts[0]] if image == "wrong" else texts
            return replace(spec, regions=list(zip(asked.boxes, texts, strict=True)))
        if not isinstance(spec, PrimeComposer):
            return spec
        return self._composed(spec, asked, self._next(item) if image == "wrong" else asked)

    def _composed(self, spec: PrimeComposer, asked: Placement, other: Placement) -> PrimeComposer:
        """A composition of an item's background with its own thing, or another one's."""
        ground, thing, (box,) = asked.thing, other.thing, asked.boxes
        if ground is None or thing is None:
            raise ValueError("regions have no object to compose")
        size = ground.background.size
        mask = stored(thing.mask)
        made = arrange(spec.name, ground.background, thing.picture, mask, box, size)
        # Conditions share what inversion costs.
        about = (asked.key, other.key, spec.domain, spec.invert, str(spec.refine))
        name = "-".join(about).replace("/", "-")
        path = self.task.out / _LATENTS / f"{name}.safetensors"
        if not path.exists():
            pictures = [made.background, made.reference]
            pictures += [made.pasted] if spec.domain == "same" else []
            steps = int(self.arguments["num_inference_steps"])
            found = inverted(self.pipeline, pictures, steps, spec.invert, spec.refine)
            with files.replacing(path) as part:
                save_file(dict(zip(NAMES, found.contiguous().cpu(), strict=False)), part)
        words = spec.subject if spec.subject != OBJECT else (str(asked.wanted.kinds[-1]),)
        return replace(spec, latents=str(path), mask=made.mask, box=box, subject=words)

    def _next(self, item: Item) -> Placement:
        """The placement after an item's among those of its kind, the first one after the last."""
        same = [one for one in self.items if one.group == item.group]
        return self.task.asked(same[(same.index(item) + 1) % len(same)])


def _composes(specs: Sequence[Intervention]) -> bool:
    return any(isinstance(spec, PrimeComposer) for spec in specs)


def _emptied(resolved: Intervention, asked: Intervention) -> Intervention:
    """A resolved spec without what each item has of its own."""
    if isinstance(resolved, Regions):
        return replace(resolved, regions=())
    if isinstance(resolved, PrimeComposer) and isinstance(asked, PrimeComposer):
        return replace(resolved, **_EMPTY, subject=asked.subject)
    return resolved
