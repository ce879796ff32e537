"""Latents moved inside a running pipeline, right before the denoiser sees them.

With z the pipeline's latents and c(t) the scheduler's scaling of the model's input, c(t) z' is what
the denoiser is called with, in all its branches, what perturbed branches see, and z' is what the
scheduler's next ``step`` gets as its sample. That call is wrapped for this once, on the scheduler's
instance and for the thread that waits; no tensor of the pipeline's is written to.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import call_of_rows
from regaze.hooks.diffusion.running import Running
from regaze.hooks.diffusion.works import Work
from regaze.hooks.locks import BriefLock


@dataclass(frozen=True)
class LatentEdit(Work):
    """Latents moved before the denoiser sees them; a method overrides `move`."""

    needs_latents = True

    def move(self, latents: Tensor, pass_: Pass) -> Tensor:
        """Latents to go on with.

        Args:
            latents: The pipeline's, float32.
            pass_: The pass that begins; ``pass_.latents`` knows the step.
        """
        return latents

    def before(self, pass_: Pass) -> None:
        """Move the pass's latents."""
        if pass_.latents is not None and pass_.latents.open:
            pass_.latents.put(self.move(pass_.latents.current(), pass_))


@dataclass(frozen=True)
class Source:
    """Where a pipeline's latents go into its denoiser's call.

    Attributes:
        scale: What the pipeline does to them before the call.
        cond: The call's arguments, of the conditional rows alone.
        name: Which argument they are.
    """

    scale: Callable[[Tensor], Tensor]
    cond: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, pass_: Pass) -> Source:
        """Find it.

        Raises:
            ValueError: The call's sample isn't made of the pipeline's latents alone, or its
                scheduler would ignore that they move.
        """
        pipeline, running = pass_.pipeline, pass_.running
        variables = {} if running is None else running.variables
        scheduler = pipeline.scheduler
        _check_corrector(scheduler, len(variables["timesteps"]))
        rows, name = pass_.rows, pass_.family.sample
        every = slice(0, rows.batch)
        cond = call_of_rows(pass_.call, rows.cond or every, rows.batch, pass_.family)
        latents, sample = variables.get("latents"), cond[name]
        scales: list[Callable[[Tensor], Tensor]] = [lambda z: z]
        if hasattr(scheduler, "scale_model_input") and "t" in variables:
            scales.insert(0, partial(_scaled, scheduler, variables["t"]))
        for scale in scales:
            if not isinstance(latents, Tensor) or len(latents) != len(sample):
                continue
            found = cls(scale, cond, name)
            whole, scaled = _joined(sample), _like(sample, scale(latents))
            if torch.equal(whole[:, : scaled.shape[1]], scaled):
                return found
        raise ValueError(
            f"{type(pipeline).__name__} calls its denoiser with something else than its latents, "
            "which therefore can't be updated; use the plain text-to-image pipeline of this model"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the call's sample."""
        return _joined(self.cond[self.name]).dtype

    def sample(self, latents: Tensor, call: Mapping[str, Any]) -> Any:
        """A call's sample with other latents, in all its branches."""
        given = call[self.name]
        old, scaled = _joined(given), _like(given, self.scale(latents))
        scaled = scaled.repeat(len(old) // len(scaled), *[1] * (old.ndim - 1))
        # Inpainting's mask and masked image follow the latents.
        rest = old[:, scaled.shape[1] :]
        new = torch.cat([scaled, rest], 1) if rest.shape[1] else scaled
        return list(new) if isinstance(given, list) else new


def _joined(sample: Any) -> Tensor:
    """A sample as one tensor, which some denoisers take as a list with a tensor for each row."""
    return torch.stack(sample) if isinstance(sample, list) else sample


def _like(sample: Any, latents: Tensor) -> Tensor:
    """Latents in the form of a sample: rows of a list have an axis of frames (Z-Image)."""
    whole = _joined(sample)
    listed = isinstance(sample, list) and whole.ndim == latents.ndim + 1
    return (latents[:, :, None] if listed else latents).to(whole.dtype)


def _scaled(scheduler: Any, t: Any, latents: Tensor) -> Tensor:
    scaled: Tensor = scheduler.scale_model_input(latents, t)
    return scaled


def _check_corrector(scheduler: Any, steps: int) -> None:
    kept = getattr(scheduler, "disable_corrector", None)
    corrects = kept is not None and not set(range(steps - 1)) <= set(kept)
    if corrects or type(scheduler).__name__.startswith("SASolver"):
        raise ValueError(
            f"{type(scheduler).__name__} corrects each step's latents from those before, which "
            "would discard the update; use another scheduler, or for UniPC "
            "disable_corrector=list(range(steps))"
        )


# -- one step ----------------------------------------------------------------------------------


class Step:
    """The latents of one step, while works move them.

    Attributes:
        index: Which step.
        steps: Of how many.
        open: Whether they can be moved in this pass: not in that of another branch, nor in a
            second-order scheduler's correction, which starts again from latents kept.
    """

    def __init__(self, owner: Latents, pass_: Pass, running: Running, at: tuple[int, int]) -> None:
        (self.index, self.steps), self.open = at, True
        self._run, self._variables = running.run, running.variables
        self.sample: Any = None
        self._owner, self._pass = owner, pass_
        self._source: Source | None = None
        self._old: Tensor | None = None
        self._new: Tensor | None = None

    @property
    def source(self) -> Source:
        """Where they go into the denoiser's call.

        Raises:
            RuntimeError: The other branch ran with latents that weren't moved yet.
            ValueError: See `Source.of`.
        """
        if self._source is None:
            if self._owner.alone == self.index:
                raise RuntimeError(
                    "the unconditional branch ran before the conditional one, with latents that "
                    "weren't updated yet; this order of calls isn't supported"
                )
            self._source = Source.of(self._pass)
        return self._source

    def current(self) -> Tensor:
        """The latents now, float32."""
        if self._new is None:
            _ = self.source
            self._old = self._variables["latents"]
            self._new = self._old.float()
        return self._new

    def put(self, latents: Tensor) -> None:
        """Go on with other latents."""
        self._new = latents

    def finish(self) -> None:
        """Hand moved latents to the denoiser and the scheduler."""
        if self._old is None or self._new is None:
            return
        new = self._new.detach().to(self._old.dtype)
        self.sample = self.source.sample(new, self._pass.call)
        scheduler = self._pass.pipeline.scheduler
        waiting = Handover(self.source, self._run, self.index, self._old, new)
        self._owner.waiting = waiting
        _hand(scheduler, waiting)


@dataclass
class Latents:
    """What one thread moves before one denoiser, from step to step."""

    waiting: Handover | None = None
    alone: int = -1

    def begin(self, pass_: Pass) -> Step:
        """The step that a pass belongs to.

        Raises:
            RuntimeError: The latents of the step before were never taken by the scheduler.
            ValueError: This pipeline's steps can't be told.
        """
        running = pass_.running
        if running is None or running.step is None:
            who = "a bare denoiser" if running is None else type(running.pipeline).__name__
            raise ValueError(
                f"{who} isn't running, or counts its steps otherwise than other pipelines, so that "
                "its latents can't be updated"
            )
        step = Step(self, pass_, running, running.step)
        if self.waiting and self.waiting.run != running.run:
            self.recall()  # Another run's, which ended before its scheduler's step.
        waiting = self.waiting if self.waiting and self.waiting.step == step.index else None
        if pass_.rows.cond is None:
            # The other branch of a pipeline that makes a call for each.
            step.open = False
            self.alone = -1 if waiting else step.index
            if waiting is not None:
                step.sample = waiting.source.sample(waiting.new, pass_.call)
            return step
        if self.waiting and not self.waiting.taken and step.index > self.waiting.step:
            raise RuntimeError(
                f"the latents updated in step {self.waiting.step} were never taken: "
                f"{type(pass_.pipeline).__name__} didn't call its scheduler's step"
            )
        if self.alone != step.index:
            self.alone = -1
        self.recall()
        if getattr(pass_.pipeline.scheduler, "state_in_first_order", True) is False:
            step.open = False
        return step

    def recall(self) -> None:
        """Give the scheduler its own step back."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.recall()


# -- on to the scheduler -----------------------------------------------------------------------


@dataclass(eq=False)
class Handover:
    """Moved latents on their way from the denoiser's call to the scheduler's."""

    source: Source
    run: int
    step: int
    old: Tensor
    new: Tensor
    taken: bool = False
    relay: Relay | None = None

    def recall(self) -> None:
        """Hand them over no more."""
        if self.relay is not None:
            self.relay.drop(self)


_LOCK = BriefLock()
_RELAYS: MutableMapping[Any, Relay] = weakref.WeakKeyDictionary()


def _hand(scheduler: Any, handover: Handover) -> None:
    with _LOCK:
        relay = _RELAYS.get(scheduler)
        if relay is None:
            relay = _RELAYS[scheduler] = Relay(scheduler)
        handover.relay = relay
        relay.waiting[threading.get_ident()] = handover
        relay.install()


@dataclass(eq=False)
class Relay:
    """A scheduler's ``step``, wrapped while somebody's latents wait for it."""

    scheduler: Any
    waiting: dict[int, Handover] = field(default_factory=dict)
    _take: Any = None
    _before: Any = None

    def install(self) -> None:
        """Wrap the step."""
        if self._take is not None and vars(self.scheduler).get("step") is self._take:
            return
        self._before, stock = vars(self.scheduler).get("step"), self.scheduler.step

        @functools.wraps(stock)
        def take(*args: Any, **kwargs: Any) -> Any:
            handover = self.waiting.get(threading.get_ident())
            if handover is None:  # Another thread's step, or one of someone who kept this call.
                return stock(*args, **kwargs)
            self.drop(handover)
            bound = inspect.signature(stock).bind(*args, **kwargs)
            given, old = bound.arguments.get("sample"), handover.old
            if given is not old and not (isinstance(given, Tensor) and torch.equal(given, old)):
                raise RuntimeError(
                    f"{type(self.scheduler).__name__}.step got a sample that isn't the latents "
                    "that were updated, so the update would be lost; this pipeline isn't supported"
                )
            handover.taken = True
            bound.arguments["sample"] = handover.new
            return stock(*bound.args, **bound.kwargs)

        self._take = self.scheduler.step = take

    def drop(self, handover: Handover) -> None:
        """Let one wait no more; the last one gives the scheduler its own step back."""
        with _LOCK:
            for key in [k for k, one in self.waiting.items() if one is handover]:
                del self.waiting[key]
            if self.waiting:
                return
            if self._take is not None and vars(self.scheduler).get("step") is self._take:
                if self._before is None:
                    del self.scheduler.step
                else:
                    self.scheduler.step = self._before
            self._take = self._before = None
            if _RELAYS.get(self.scheduler) is self:
                del _RELAYS[self.scheduler]
