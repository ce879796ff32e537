"""The stack of works on one denoiser, and what it runs code around."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import fork as forks
from regaze.hooks.diffusion import kernel
from regaze.hooks.diffusion.branches import has_branches
from regaze.hooks.diffusion.eager import eagerly
from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.fork import is_compiled
from regaze.hooks.diffusion.gradients import thawed
from regaze.hooks.diffusion.host import inner, refuse_caches, refuse_parallel
from regaze.hooks.diffusion.inside import Inside
from regaze.hooks.diffusion.one_pass import OnePass
from regaze.hooks.diffusion.outside import Guess
from regaze.hooks.diffusion.per_thread import PerThread
from regaze.hooks.diffusion.sites import blocks
from regaze.hooks.locks import BriefLock


class Seat:
    """Everything attached to one denoiser.

    Args:
        denoiser: The U-Net or transformer; may be compiled.
        cond_rows: Conditional rows, by the user's word.
        fork: True if branches may begin at their first edited layer.
    """

    def __init__(self, denoiser: nn.Module, cond_rows: slice | None, fork: bool) -> None:
        self._denoiser = weakref.ref(denoiser)
        self._attached: weakref.ref[Any] | None = None
        self.cond_rows, self.fork = cond_rows, fork
        self.entries: tuple[Entry, ...] = ()
        self._lock = BriefLock()
        self._calls = Calls()
        self._passing: list[Calls] = []
        self._threads: dict[threading.Thread, PerThread] = {}
        self._guesses: list[Guess] = []

    # -- installing ----------------------------------------------------------------------------

    def push(self, entry: Entry, pipeline: Any = None) -> None:
        """Add a work.

        Args:
            entry: The work, with its counters.
            pipeline: The pipeline that it was attached to; None for a bare denoiser.
        """
        with self._lock:
            if pipeline is not None:
                self._attached = weakref.ref(pipeline)
            self.entries = (*self.entries, entry)
            self._install()

    def pop(self, entry: Entry) -> None:
        """Take a work off, from anywhere; a second time finishes what the first one couldn't.

        A pass under way, in whatever thread, ends as it began, and leaves nothing behind then.
        """
        with self._lock:
            entry.doubt = self.doubt(entry)
            self.entries = tuple(one for one in self.entries if one is not entry)
            if entry.work.needs_latents and not self._under_way():
                for thread in list(self._threads.values()):
                    thread.latents.recall()
                if (denoiser := self._denoiser()) is not None:
                    thawed(inner(denoiser))
            self._retire()

    def _retire(self) -> None:
        """Take off what nothing attached needs, unless a pass is under way that may."""
        if self._under_way():
            return
        if not self.entries:
            self._threads.clear()
            self._guesses.clear()
            for calls in self._passing:
                calls.release()
            self._passing.clear()
        self._install()

    def _under_way(self) -> bool:
        """True if any thread is in the middle of a pass, which its stack tells."""
        for top in sys._current_frames().values():
            frame: FrameType | None = top
            while frame is not None:
                if frame.f_code is Seat._around.__code__:
                    here = frame.f_locals
                    if here.get("self") is self and not here.get("over"):
                        return True
                frame = frame.f_back
        return False

    def _install(self) -> None:
        """Run code around the calls of what the works need, and of nothing else."""
        denoiser = self._denoiser()
        if denoiser is None:
            return
        wanted = []
        if self.entries:
            wanted.append(denoiser)
            self._calls.around(denoiser, self._around, opaque=True)
        if not any(is_compiled(part) for part in denoiser.modules()):
            if self.entries:
                self._calls.around(denoiser, self._inside, inner=True)
            # Compiled code would be compiled anew for each class: there, for the pass alone.
            for site in {site for entry in self.entries for site in entry.work.sites}:
                module: Any = denoiser.get_submodule(site.name)
                kernel.watch(self._calls, module)
                wanted += [module, module.processor]
            if self.fork and any(has_branches(entry.work) for entry in self.entries):
                forks.watch(self._calls, denoiser)
                wanted += [denoiser.get_submodule(name) for name in blocks(denoiser)]
        keep = set(map(id, wanted))
        self._calls.release(keep=lambda thing: id(thing) in keep)

    def doubt(self, entry: Entry) -> str:
        """The facts about the calls in which a work acted that nothing confirmed; empty if none."""
        threads = list(self._threads.values())
        guesses = [*self._guesses, *(thread.outside.guess for thread in threads)]
        found = (guess.doubt for guess in guesses if guess is not None and entry in guess.acted)
        return next(found, entry.doubt)

    def of(self, denoiser: nn.Module) -> bool:
        """True if this is a denoiser's seat."""
        return self._denoiser() is denoiser

    # -- around one forward pass ---------------------------------------------------------------

    def _around(self, module: nn.Module, run: Callable[..., Any], /, *args: Any, **kw: Any) -> Any:
        entries = self.entries
        if not entries:
            return run(*args, **kw)
        refuse_caches(inner(module))  # Switched on since something was attached.
        refuse_parallel(inner(module))
        owner, over = Calls(), False
        with _cleared(owner):
            try:
                return OnePass(self, module, entries, owner)(run, args, kw)
            finally:
                over = True  # noqa: F841 (for `_under_way`, which reads it off the stack)
                self.thread().inside = None
                if self.entries is not entries:
                    with self._lock:
                        self._retire()

    def _inside(self, module: nn.Module, run: Callable[..., Any], /, *args: Any, **kw: Any) -> Any:
        output = run(*args, **kw)
        self.thread().inside = Inside.of(module, args, kw, output)
        return output

    def thread(self) -> PerThread:
        """The state that this thread keeps from pass to pass."""
        here = threading.current_thread()  # Numbers of threads that ended are given anew.
        with self._lock:
            if here not in self._threads:
                alive = set(threading.enumerate())
                for ended in self._threads.keys() - alive:
                    state = self._threads.pop(ended)
                    state.latents.recall()
                    if state.outside.guess is not None:
                        self._guesses.append(state.outside.guess)
                self._threads[here] = PerThread()
            return self._threads[here]

    def ended(self) -> None:
        """Let nothing of this thread wait for a scheduler's step that a run ended before."""
        state = self._threads.get(threading.current_thread())
        if state is not None:
            state.latents.recall()

    @property
    def attached(self) -> Any:
        """The pipeline that works were attached to, while it exists."""
        return None if self._attached is None else self._attached()

    def calls(self, owner: Calls, compiled: bool) -> Calls:
        """The `Calls` that run code around the modules of a pass."""
        if not compiled:
            return self._calls
        with self._lock:
            self._passing = [c for c in self._passing if c is not owner] + [owner]
        return owner


@contextmanager
def _cleared(owner: Calls) -> Iterator[None]:
    """Let nothing that was entered inside outlive it, whatever ends it, and at whatever line."""
    with kernel.cleared(), forks.cleared():
        try:
            try:
                yield
            finally:
                eagerly.leave(owner)
                owner.release()
        finally:  # Again, should an interrupt have come in the first one's way.
            eagerly.leave(owner)
            owner.release()


# -- one seat for each denoiser ----------------------------------------------------------------

_SEATS: MutableMapping[nn.Module, Seat] = weakref.WeakKeyDictionary()
_LOCK = BriefLock()


def seat_of(module: nn.Module, cond_rows: slice | None, fork: bool) -> Seat:
    """The one seat of a denoiser, made on first use.

    Raises:
        ValueError: It has works attached under other settings.
    """
    with _LOCK:
        seat = _SEATS.get(module)
        if seat is None or not seat.entries:
            seat = _SEATS[module] = Seat(module, cond_rows, fork)
        elif (seat.cond_rows, seat.fork) != (cond_rows, fork):
            raise ValueError(
                "this denoiser already has interventions attached with other cond_rows or "
                "fork; attach them all in one call, or detach first"
            )
        return seat


def known_seat(module: nn.Module) -> Seat | None:
    """The seat of a denoiser that has works attached."""
    seat = _SEATS.get(module)
    return seat if seat is not None and seat.entries else None
