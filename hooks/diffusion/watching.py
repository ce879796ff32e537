"""Common parts of works that look at a pipeline's runs, whatever they look for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.fork import is_compiled
from regaze.hooks.diffusion.host import find_denoisers
from regaze.hooks.diffusion.seat import known_seat, seat_of
from regaze.hooks.diffusion.works import Work


def watchable(pipeline: Any, act: str) -> Any:
    """The denoiser of a pipeline whose maps can be seen.

    Args:
        pipeline: A diffusers pipeline.
        act: Verb for what to do before compiling it, for the message.

    Raises:
        TypeError: It is no pipeline with a known denoiser.
        ValueError: The denoiser is compiled.
    """
    denoisers = find_denoisers(pipeline)
    if not denoisers or pipeline in denoisers.values():
        raise TypeError(f"{type(pipeline).__name__} is no diffusers pipeline")
    denoiser = next(iter(denoisers.values()))
    if is_compiled(denoiser):
        raise ValueError(f"a compiled denoiser doesn't show its maps; {act} before compiling it")
    return denoiser


@contextmanager
def watched(pipeline: Any, denoiser: Any, work: Work) -> Iterator[None]:
    """Let a work that edits nothing look on, inside."""
    entry = Entry(work)
    seat = known_seat(denoiser) or seat_of(denoiser, None, fork=True)
    try:
        seat.push(entry, pipeline)
        yield
    finally:
        seat.pop(entry)
    entry.refuse_doubt()
