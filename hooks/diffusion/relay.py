"""Moved latents on their way from the denoiser's call to the scheduler's ``step``.

That method is wrapped for this once, on the scheduler's instance and for the thread that waits.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.source import Source
from regaze.hooks.locks import BriefLock


@dataclass(eq=False)
class Handover:
    """Moved latents on their way from the denoiser's call to the scheduler's."""

    source: Source
    run: object
    step: int
    old: Tensor
    new: Tensor
    taken: bool = False
    relay: Relay | None = None

    def recall(self) -> None:
        """Hand the latents over no more."""
        if self.relay is not None:
            self.relay.drop(self)


_LOCK = BriefLock()
_RELAYS: MutableMapping[Any, Relay] = weakref.WeakKeyDictionary()


def hand(scheduler: Any, handover: Handover) -> None:
    """Let latents wait for a scheduler's step."""
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
        """Let latents wait no more; the last ones give the scheduler its own step back."""
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
