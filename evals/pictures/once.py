"""Paint one picture, with methods or without, as a person does who tries them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Painter, Picture, Shot
from regaze.hooks.attach import attach
from regaze.hooks.diffusion.head_maps import HeadMaps, head_maps
from regaze.hooks.diffusion.host import find_denoisers
from regaze.hooks.report import Report
from regaze.interventions.base import Intervention


@dataclass(frozen=True)
class Painted:
    """A picture, and how it came about.

    Attributes:
        picture: The picture.
        report: The report on the methods.
        seen: Each head's attention; None where it wasn't looked at.
        unseen: Why it wasn't, where it was asked for.
    """

    picture: Picture
    report: Report
    seen: HeadMaps | None = None
    unseen: str = ""


def paint(
    loaded: LoadedPipeline,
    shot: Shot,
    specs: Sequence[Intervention] = (),
    arguments: Mapping[str, Any] | None = None,
    *,
    words: Sequence[str] = (),
    told: Callable[[int], None] = lambda step: None,
    pulse: Callable[[], None] | None = None,
) -> Painted:
    """Paint a picture; the same shot starts from the same noise, whatever is attached.

    Args:
        loaded: The pipeline; left as it was found.
        shot: The picture to paint.
        specs: Methods, in the order in which they act.
        arguments: Arguments of the pipeline's call, over those that it was loaded with.
        words: Words of the prompt whose attention is looked at, head by head.
        told: Told of every sampling step that ends.
        pulse: Called before every pass of the denoiser; what it raises ends the painting.

    Raises:
        ValueError: A method or an argument doesn't fit the pipeline.
    """
    painter = Painter(loaded.pipeline, {**loaded.arguments, **(arguments or {})})
    seen, unseen = None, ""
    with ExitStack() as stack:
        run = stack.enter_context(attach(loaded.pipeline, *specs))
        if words:
            try:
                seen = stack.enter_context(head_maps(loaded.pipeline, words))
            except ValueError as error:  # A method gives the layers other text than the prompt's.
                unseen = " ".join(str(error).split())
        if pulse is not None:
            stack.enter_context(_pulsing(loaded.pipeline, pulse))
        (picture,) = painter.paint([shot], told)
    return Painted(picture, run.report(), seen, unseen)


@contextmanager
def _pulsing(pipeline: Any, pulse: Callable[[], None]) -> Iterator[None]:
    hooks = [
        denoiser.register_forward_pre_hook(lambda module, args: pulse())
        for denoiser in (find_denoisers(pipeline) or {}).values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
