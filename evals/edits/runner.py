"""Edit pictures under several conditions and keep them, before and after.

Every condition edits the same pictures from the same noise; the baseline is the edit prompt from
the source's noise, with nothing attached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from regaze.evals.edits.task import Edits, EditSource, strip
from regaze.evals.edits.world import Change, free
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.work import refuse_images
from regaze.evals.pictures.world_work import Made, WorldWork
from regaze.evals.runs import driver
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Plan
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.interventions import ConsistEdit
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.edit_source import Source
from regaze.interventions.diffusion.inversion import invert

ARGUMENTS: Mapping[str, Any] = {
    "num_inference_steps": 12,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
}
EXACT = "exact"
"""As a mask: what may change, by the truth."""
OBJECT = "object"
"""As words: those that name the edited object."""


def run(
    pipeline: Any,
    conditions: Sequence[Condition],
    source: EditSource,
    *,
    out: Path,
    identity: Mapping[str, Any],
    arguments: Mapping[str, Any] = ARGUMENTS,
    batch_size: int = 8,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Make all edits under all conditions, or what isn't on the disk yet.

    Args:
        pipeline: The painting world's painter with joint attention; left as it was found.
        conditions: The conditions to compare; the unedited pipeline is added in front where it is
            missing. ``consistedit:mask=exact`` gets the true mask of each edit, ``words=object``
            the words that name the object.
        source: The source of the edits.
        out: Directory of the study: one folder per condition.
        identity: ``name``, and what distinguishes the pipeline's weights, JSON-able.
        arguments: Arguments of the pipeline's call.
        batch_size: Edits to make at once.
        progress: Called with a condition's label, edits done and edits in all.
        world: This process among those that share the work.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds edits made with
            other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    loaded = LoadedPipeline(pipeline, identity)
    work = Editing(Edits(source, out), loaded, arguments, batch_size)
    noted = source.to_dict()
    return driver.run(work, conditions, out=out, source=noted, progress=progress, world=world)


class Editing(WorldWork[Edits]):
    """Edits to make."""

    folder = "strips"

    def __init__(
        self, task: Edits, loaded: LoadedPipeline, arguments: Mapping[str, Any], batch_size: int
    ) -> None:
        super().__init__(task, loaded, arguments, batch_size)
        self._sources: dict[Any, Source] = {}

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, but for each edit's own."""
        refuse_images(condition)
        _read_words(condition.specs)
        given = [
            replace(spec, mask="all") if isinstance(spec, ConsistEdit) else spec
            for spec in condition.specs
        ]
        with attach(self.pipeline, *given) as attached:
            found = [cast(Intervention, spec) for spec in attached.specs]
        return tuple(
            replace(done, mask=asked.mask)
            if isinstance(done, ConsistEdit) and isinstance(asked, ConsistEdit)
            else done
            for done, asked in zip(found, condition.specs, strict=True)
        )

    def make(self, plan: Plan, batch: Sequence[Item], wanted: Sequence[Item]) -> Iterator[Made]:
        """Edit a batch: strips of the pictures before and after."""
        asked = [self.task.asked(item) for item in batch]
        drawn = [one.drawn for one in asked] if self.task.source.pictures == "drawn" else None
        source = None
        if drawn is not None:
            words = _read_words(plan.specs)
            source = self._inverted(asked, drawn, [_words(words, one) for one in asked])
        specs = [self._filled(spec, asked, batch, drawn, source) for spec in plan.specs]
        noise = None if source is None else source.latents[0].repeat_interleave(2, 0)
        with attach(self.pipeline, *specs) as attached:
            made = self._painted([one for a in asked for one in (a.source, a.edit)], batch, noise)
        before = made[::2] if drawn is None else drawn
        firing = attached.report().to_dict() if plan.specs else None
        for item, *both in zip(batch, before, made[1::2], strict=True):
            yield Made(item, strip(*both), firing)

    def _painted(
        self, wanted: Sequence[Any], batch: Sequence[Item], noise: Any = None
    ) -> list[Image.Image]:
        """Pictures of prompts, of which each item has as many, from its noise."""
        each = len(wanted) // len(batch)
        begin: dict[str, Any] = {"latents": noise}
        if noise is None:
            seeds = [self.task.noise_seed(item) for item in batch for _ in range(each)]
            begin = {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
        prompts = [one.prompt for one in wanted]
        found: list[Image.Image] = self.pipeline(prompts, **begin, **self.arguments).images
        return found

    def _inverted(
        self, asked: Sequence[Change], drawn: Sequence[Image.Image], words: Sequence[Any]
    ) -> Source:
        # Conditions share what inversion costs.
        key = (*(one.key for one in asked), *words)
        if key not in self._sources:
            call = {k: v for k, v in self.arguments.items() if k != "guidance_scale"}
            prompts = [one.source.prompt for one in asked]
            self._sources[key] = invert(self.pipeline, prompts, list(drawn), words=words, **call)
        return self._sources[key]

    def _filled(
        self,
        spec: Intervention,
        asked: Sequence[Change],
        batch: Sequence[Item],
        drawn: Sequence[Image.Image] | None,
        source: Source | None,
    ) -> Intervention:
        """A spec with what the edits of a batch have of their own."""
        if not isinstance(spec, ConsistEdit):
            return spec
        if spec.mask == EXACT:
            shown = drawn or self._painted([one.source for one in asked], batch)
            spec = replace(spec, mask=[_free(*both) for both in zip(shown, asked, strict=True)])
        if spec.words == (OBJECT,):
            spec = replace(spec, words=[_words(spec.words, one) for one in asked])
        return spec if source is None else replace(spec, source=source)


def _read_words(specs: Sequence[Intervention]) -> Any:
    """The words that a condition's edits are read for, which share one inversion.

    Raises:
        ValueError: Two edits name different ones.
    """
    found = [spec.words for spec in specs if isinstance(spec, ConsistEdit)]
    if any(one != found[0] for one in found):
        raise ValueError("consistedit: edits of one condition must name the same words")
    return found[0] if found else ()


def _words(words: Any, asked: Change) -> tuple[str, ...]:
    """The words of an edit's source that are looked for."""
    if words == (OBJECT,):
        return (str(asked.object),)
    if words in ((), "auto"):
        from regaze.interventions.diffusion.edit_words import changed_words

        return tuple(changed_words(asked.source.prompt, asked.edit.prompt))
    return tuple(words)


def _free(picture: Image.Image, asked: Change) -> Any:
    """Pixels that may change: all where the picture lacks the object, which isn't judged."""
    try:
        return free(picture, asked)
    except ValueError:
        return torch.ones(picture.height, picture.width, dtype=torch.bool).numpy()
