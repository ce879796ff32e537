"""Edit one picture under several conditions: painted from noise, or a real one, inverted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from regaze.evals.pictures.grid import Block, draw
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress, quiet
from regaze.hooks.attach import attach
from regaze.interventions import ConsistEdit
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion import masks
from regaze.interventions.diffusion.edit_source import Recording, Source, recorded
from regaze.interventions.diffusion.edit_words import changed_words
from regaze.interventions.diffusion.inversion import invert

_TINT = np.array([235, 60, 60], np.float64)
_GUIDANCE = ("guidance_scale", "true_cfg_scale", "negative_prompt")


@dataclass(frozen=True)
class Asked:
    """The source of an edit.

    Attributes:
        prompt: The picture's description.
        edit: The description of the edited picture.
        words: Words of the prompt that say what may be edited; none: those that the edit changes.
        mask: Or where: a file, or "all".
        seed: Seed of the noise.
    """

    prompt: str
    edit: str
    words: tuple[str, ...] = ()
    mask: str | None = None
    seed: int = 0

    @property
    def noise_seed(self) -> int:
        """The generator's seed: other commands give this prompt and seed the same noise."""
        return Shot(self.prompt, self.seed).noise_seed


@dataclass(frozen=True)
class Edited:
    """A picture under a condition.

    Attributes:
        title: The condition's.
        specs: The condition's interventions as they were resolved, JSON-able.
        picture: The edited picture.
        mask: The part that it was allowed to change, tokens "rows columns" or pixels; None: all.
        firing: The interventions' firing; None for the unedited pipeline.
    """

    title: str
    specs: Sequence[Mapping[str, Any]]
    picture: Image.Image
    mask: torch.Tensor | None
    firing: Mapping[str, Any] | None

    @property
    def silent(self) -> bool:
        """True if an intervention never acted."""
        return self.firing is not None and not self.firing["fired"]


def edit(
    loaded: LoadedPipeline,
    conditions: Mapping[str, Condition],
    asked: Asked,
    arguments: Mapping[str, Any],
    *,
    image: Image.Image | None = None,
    progress: Progress = quiet,
) -> tuple[Image.Image, list[Edited]]:
    """Edit a picture under each condition.

    Its source is run once before, when the words are looked for: painted, or a real one inverted.

    Args:
        loaded: A pipeline with joint attention; left as it was found.
        conditions: By their titles; `ConsistEdit` gets the source, and the words or mask that were
            asked for if it has none of its own.
        asked: The edits to make.
        arguments: Arguments of the pipeline's call.
        image: A real picture; without it the source is painted.
        progress: Called with a label, runs done and runs in all.

    Returns:
        The source, and what each condition made of it.

    Raises:
        ValueError: A condition or an argument doesn't fit, or the edit's prompt is the source's.
    """
    if asked.prompt == asked.edit:
        raise ValueError(
            f"the edit prompt is the source's, {asked.prompt!r}: say what should differ"
        )
    Painter(loaded.pipeline, arguments)  # It refuses arguments that don't fit.
    wanted = {
        title: tuple(_with(spec, asked) for spec in condition.specs)
        for title, condition in conditions.items()
    }
    for specs in wanted.values():
        with attach(loaded.pipeline, *specs):
            pass
    looked_for = {
        spec.words
        for specs in wanted.values()
        for spec in specs
        if isinstance(spec, ConsistEdit) and spec.mask is None
    }
    total = 1 + len(wanted)
    progress("runs", 0, total)
    picture, sources = _source(loaded, asked, arguments, image, sorted(looked_for, key=str))
    found = []
    for number, (title, specs) in enumerate(wanted.items(), 1):
        progress("runs", number, total)
        filled = [
            replace(spec, source=sources[spec.words if spec.mask is None else ()])
            if isinstance(spec, ConsistEdit)
            else spec
            for spec in specs
        ]
        found.append(_edited(loaded, title, filled, asked, arguments, sources[()]))
    progress("runs", total, total)
    return picture, found


def _with(spec: Intervention, asked: Asked) -> Intervention:
    """A spec with the words or the mask that were asked for, if it has none of its own."""
    if not isinstance(spec, ConsistEdit) or spec.mask is not None:
        return spec
    if spec.words == "auto" and asked.mask is not None:
        return replace(spec, mask=asked.mask)
    if spec.words == "auto":
        return replace(spec, words=asked.words or tuple(changed_words(asked.prompt, asked.edit)))
    return spec


def _source(
    loaded: LoadedPipeline,
    asked: Asked,
    arguments: Mapping[str, Any],
    image: Image.Image | None,
    words: Sequence[Any],
) -> tuple[Image.Image, dict[Any, Source]]:
    """The picture, and its source with what it gives to each list of words."""
    pipeline = loaded.pipeline
    with ExitStack() as stack:
        runs: dict[Any, Recording] = {
            one: stack.enter_context(recorded(pipeline, one)) for one in ((), *words)
        }
        if image is None:
            made = _painted(loaded, [asked.prompt], arguments, seed=asked.noise_seed)
            return made[0], {one: run.source for one, run in runs.items()}
        given = fitted(pipeline, image)
        plain = {name: x for name, x in arguments.items() if name not in _GUIDANCE}
        back = invert(pipeline, asked.prompt, given, **plain)
        read = {one: run.source for one, run in runs.items()}
        shown = {n: replace(back, shares=one.shares, grid=one.grid) for n, one in read.items()}
        return given, shown


def _edited(
    loaded: LoadedPipeline,
    title: str,
    specs: Sequence[Intervention],
    asked: Asked,
    arguments: Mapping[str, Any],
    source: Source,
) -> Edited:
    noise = source.latents[0]
    with attach(loaded.pipeline, *specs) as attached:
        prompts = [asked.prompt, asked.edit]
        _, picture = _painted(loaded, prompts, arguments, latents=noise.repeat_interleave(2, 0))
        resolved = [cast(Intervention, spec).to_dict() for spec in attached.specs]
    firing = attached.report().to_dict() if specs else None
    mask = next((m for spec in specs if (m := _mask(spec)) is not None), None)
    return Edited(title, resolved, picture, mask, firing)


def _painted(
    loaded: LoadedPipeline,
    prompts: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    seed: int | None = None,
    latents: Any = None,
) -> list[Image.Image]:
    given: dict[str, Any] = {"latents": latents}
    if latents is None:
        given = {"generator": [torch.Generator("cpu").manual_seed(seed or 0)]}
    else:
        given["latents"] = latents.to(loaded.pipeline.device, _dtype(loaded))
    try:
        made = loaded.pipeline(prompt=list(prompts), output_type="pil", **given, **arguments).images
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        name = type(loaded.pipeline).__name__
        raise ValueError(f"{name} can't be called like this: {error}") from error
    return [picture.convert("RGB") for picture in made]


def _dtype(loaded: LoadedPipeline) -> torch.dtype:
    found = getattr(torch, loaded.dtype)
    assert isinstance(found, torch.dtype)  # noqa: S101
    return found


def _mask(spec: Intervention) -> torch.Tensor | None:
    """The part that a spec lets an edit change, rows and columns of tokens or pixels.

    Raises:
        ValueError: Its source doesn't say which place each token is.
    """
    if not isinstance(spec, ConsistEdit) or spec.mask == "all":
        return None
    if spec.mask is not None:
        found = masks.read(str(spec.mask))
    else:
        source = Source.read(str(spec.source))
        if not source.grid or math.prod(source.grid[:-2]) != 1:
            raise ValueError(
                f"consistedit: source {str(spec.source)!r} doesn't say how its tokens lie in the "
                "picture, so what may change can't be shown: record it anew, or give a mask"
            )
        found = source.edited(spec.threshold)[0].view(source.grid[-2:])
    return found if spec.region == "inside" else ~found


def fitted(pipeline: Any, image: Image.Image) -> Image.Image:
    """A picture in a size that a pipeline was made for, of about its own proportions."""
    unit = 2 * int(pipeline.vae_scale_factor)
    side = int(getattr(pipeline, "default_sample_size", 0) or 64) * int(pipeline.vae_scale_factor)
    scale = side / math.sqrt(image.width * image.height)
    width, height = (max(1, round(n * scale / unit)) * unit for n in image.size)
    rgb = image.convert("RGB")
    return rgb if rgb.size == (width, height) else rgb.resize((width, height))


# -- pictures ----------------------------------------------------------------------------------


def overlay(picture: Image.Image, mask: torch.Tensor) -> Image.Image:
    """A picture with what may change tinted."""
    over = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    inside = np.asarray(over.resize(picture.size, Image.Resampling.NEAREST))[..., None] > 127
    pixels = np.asarray(picture, np.float64)
    return Image.fromarray(np.where(inside, (pixels + _TINT) / 2, pixels).astype(np.uint8))


def draw_strip(
    rows: Mapping[str, tuple[Image.Image, Sequence[Edited]]],
    title: str,
    cell: int | None = None,
) -> Image.Image:
    """Sources, what each condition made of them, and where it was allowed to change them.

    Args:
        rows: A source and its edits, by the row's label.
        title: Above them.
        cell: Longer side of a picture, in pixels.
    """
    heads: list[str] = []
    cells = []
    for picture, found in rows.values():
        row, heads = [picture], ["source"]
        for one in found:
            if one.mask is not None:
                row.append(overlay(picture, one.mask))
                heads.append(f"may change, {one.title}" if len(found) > 2 else "may change")
            row.append(one.picture)
            heads.append(one.title)
        cells.append(row)
    return draw(heads, [Block(title, list(rows), cells)], cell=cell)
