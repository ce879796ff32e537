"""The pipeline that is running: found on the stack, with the variables of its ``__call__``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

from regaze.hooks.diffusion.host import inner, is_pipeline

_BETWEEN = ("accelerate", "contextlib", "diffusers", "functools", "peft", "regaze", "torch")
"""Packages whose code may lie between a pipeline and its denoiser's call."""

_KEPT = "__regaze_memory__"


class Memory:
    """Things remembered of one run of a pipeline.

    It lies among the variables of the run's ``__call__`` and ends with them: no other run, nested
    or later, can be taken for this one.

    Attributes:
        works: Works that have begun with the run, by what they are attached as.
    """

    def __init__(self) -> None:
        self.works: dict[Any, Any] = {}

    @classmethod
    def of(cls, frame: FrameType) -> Memory:
        """The memory of the run whose ``__call__`` has this frame."""
        here: Any = frame.f_locals  # Python keeps what isn't a variable, too, as long as the frame.
        if _KEPT not in here:
            here[_KEPT] = cls()
        found: Memory = here[_KEPT]
        return found


@dataclass(frozen=True)
class Running:
    """A pipeline that is running.

    Attributes:
        pipeline: The pipeline.
        variables: The variables of its ``__call__``, as they are now.
        run: Memory of this run, by which it is told from others.
        guider: Branch that this call is by the guider of a modular pipeline, and the number of
            branches in this step; None in other pipelines.
        through: The function that calls the denoiser, if it isn't the pipeline's own code, such as
            a callback; empty if it is.
    """

    pipeline: Any
    variables: Mapping[str, Any]
    run: Memory
    guider: tuple[str, int] | None = None
    through: str = ""

    @property
    def step(self) -> tuple[int, int] | None:
        """The sampling step and the number of steps; None if it counts them otherwise."""
        index, steps = self.variables.get("i"), self.variables.get("timesteps")
        return (index, len(steps)) if isinstance(index, int) and steps is not None else None

    @property
    def images(self) -> int:
        """The number of images or videos that it makes of each prompt."""
        found = self.variables.get("num_images_per_prompt")
        return int(found or self.variables.get("num_videos_per_prompt") or 1)


def running(denoiser: Any) -> Running | None:
    """The innermost pipeline whose ``__call__`` is running and which has this denoiser.

    Args:
        denoiser: The denoiser that is called, maybe compiled.
    """
    frame: FrameType | None = sys._getframe(1)
    others: list[FrameType] = []
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            pipeline = frame.f_locals.get("self")
            if is_pipeline(pipeline) and _has(pipeline, denoiser):
                through = [f for f in others if f.f_locals.get("self") is not pipeline]
                name = through[0].f_code.co_name if through else ""
                return Running(pipeline, frame.f_locals, Memory.of(frame), through=name)
            if (found := _modular(frame, denoiser)) is not None:
                return found
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _BETWEEN:
            others.append(frame)
        frame = frame.f_back
    return None


def _modular(frame: FrameType, denoiser: Any) -> Running | None:
    """The modular pipeline whose block runs in a frame, if its guider runs the denoiser there."""
    here = frame.f_locals
    pipeline, batch, batches = (
        here.get(n) for n in ("components", "guider_state_batch", "guider_state")
    )
    if batch is None or not isinstance(batches, list) or not _has(pipeline, denoiser):
        return None
    said = str(getattr(batch, "__guidance_identifier__", None))
    run, outer = frame, frame.f_back
    while outer is not None:  # Its blocks are called anew in each step.
        if outer.f_locals.get("self") is pipeline or outer.f_locals.get("components") is pipeline:
            run = outer
        outer = outer.f_back
    steps = getattr(here.get("block_state"), "timesteps", None)
    return Running(pipeline, {"timesteps": steps, **here}, Memory.of(run), (said, len(batches)))


def _has(pipeline: Any, denoiser: Any) -> bool:
    return any(
        part is denoiser or inner(part) is inner(denoiser)
        for part in getattr(pipeline, "__dict__", {}).values()
    )


def variables_of(pipeline: Any) -> Mapping[str, Any]:
    """The variables of a pipeline's ``__call__``, if it is running."""
    frame: FrameType | None = None if pipeline is None else sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipeline:
            return frame.f_locals
        frame = frame.f_back
    return {}


def progress_of(found: Running | None) -> float:
    """Share of the sampling steps that lie behind, in [0, 1).

    Raises:
        ValueError: A bare denoiser has no steps, or this pipeline doesn't count them as others do.
    """
    if found is None or found.step is None:
        who = "a bare denoiser" if found is None else type(found.pipeline).__name__
        raise ValueError(
            "start and stop are shares of the sampling steps, which only a running pipeline knows, "
            f"and {who} doesn't tell; attach to a stock pipeline, or leave start and stop out"
        )
    step, steps = found.step
    return step / steps


def counts_training_steps(found: Running | None) -> bool:
    """True if the timesteps of a pipeline's scheduler are those of the training, 0 to 1000."""
    scheduler: Any = None if found is None else getattr(found.pipeline, "scheduler", None)
    if scheduler is None or hasattr(scheduler, "precondition_noise"):  # Logarithms of noise (EDM).
        return False
    config = getattr(scheduler, "config", None)
    if config is None:  # A class of one's own says nothing about its time.
        return False
    logarithms = config.get("timestep_type") == "continuous"
    return not (logarithms and config.get("prediction_type") == "v_prediction")


def timestep_of(found: Running | None, call: Mapping[str, Any]) -> float:
    """The timestep of a call as the scheduler counts it; pipelines may hand on a share of it."""
    told = call.get("timestep")
    t = told if found is None else found.variables.get("t", told)
    return float(t.reshape(-1).amax()) if isinstance(t, Tensor) else float(t)  # type: ignore[arg-type]
