"""The state of the code that called the text tower, read off its running Python frames.

A shape doesn't tell a decode step from the last part of a prompt, nor a further question from
candidates that assisted decoding checks. `generate` itself knows, and it is on the stack.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

# Frames of transformers' generation that decide what a pass is; the innermost one speaks.
_CALL = nn.Module._call_impl.__code__
_LOOPS = frozenset({"_prefill", "_assisted_decoding", "_sample", "_beam_search", "generate"})


@dataclass(frozen=True)
class Generating:
    """The facts about a pass that a running ``generate`` holds.

    Attributes:
        partial: True if the pass reads a part of the prompt that isn't the last.
        candidates: Tokens at the end of the block that answer the prompt: proposed ones, which
            assisted decoding checks, or, without a cache, all that were generated so far.
    """

    partial: bool = False
    candidates: int = 0


class Callers:
    """Finds the callers of one text tower."""

    def __init__(self, tower: nn.Module) -> None:
        self._tower = weakref.ref(tower)
        self._holders: MutableMapping[nn.Module, bool] = weakref.WeakKeyDictionary()

    def holds(self, owner: Any) -> bool:
        """Return whether an object is a module that holds the tower, or the tower."""
        if not isinstance(owner, nn.Module):
            return False
        found = self._holders.get(owner)
        if found is None:
            tower = self._tower()
            found = self._holders[owner] = any(m is tower for m in owner.modules())
        return found

    def generating(self) -> Generating:
        """Read what ``generate`` is doing with the tower, if it runs.

        Raises:
            RuntimeError: It reads the prompt in parts in a way that isn't known.
        """
        for frame in self._loops():
            local = frame.f_locals
            if _begins_anew(frame.f_code.co_name, local):
                return Generating(candidates=self._generated(local))
            return _read(frame.f_code.co_name, local)
        return Generating()

    def _generated(self, loop: Mapping[str, Any]) -> int:
        """Count the tokens behind the prompt in a loop that reads all of it at every step.

        Raises:
            RuntimeError: The prompt's length isn't where it is known to be.
        """
        now = loop.get("cur_len", len(loop["input_ids"][0]))
        for frame in self._loops():
            if frame.f_code.co_name == "generate":
                prompt = frame.f_locals.get("input_ids_length")
                if isinstance(prompt, int) and isinstance(now, int) and now >= prompt:
                    return now - prompt
        raise RuntimeError(
            "generate(use_cache=False) reads prompt and answer at every step in a way that regaze "
            "doesn't know in this version of transformers; leave use_cache=False out"
        )

    def request(self) -> Mapping[str, Any] | None:
        """Return the inputs of the ``generate`` that makes this call, as they were given."""
        for frame in self._loops():
            local = frame.f_locals
            if frame.f_code.co_name == "generate":
                asked = dict(local.get("kwargs") or {})
                if local.get("inputs") is not None:
                    asked.setdefault("input_ids", local["inputs"])
                return asked
        return None

    def arguments(self) -> Iterator[Mapping[str, Any]]:
        """Variables of the running ``forward`` calls around the tower, outermost first."""
        found: list[Mapping[str, Any]] = []
        for frame in self._outwards():
            if frame.f_code.co_name == "forward" and self.holds(frame.f_locals.get("self")):
                found.append(frame.f_locals)
        yield from reversed(found)

    def _loops(self) -> Iterator[FrameType]:
        """Frames of generation that make the call of the tower that runs now, innermost first.

        What a loop was given (processors of scores, criteria to stop, streamers) may run the model
        on prompts of its own, of which the loop knows nothing.
        """
        inner: FrameType | None = None
        for frame in self._outwards():
            if frame.f_code.co_name in _LOOPS:
                local = frame.f_locals
                if self.holds(owner := local.get("self")):
                    caller = None if inner is None else inner.f_locals.get("self")
                    if caller is not owner and any(one is caller for one in _helpers(local)):
                        return
                    yield frame
            inner = frame

    def _outwards(self) -> Iterator[FrameType]:
        """Frames of the call of the tower that runs now, innermost first.

        A hook may run the model inside of a call of its own: that one isn't this call's any more.
        """
        called: set[nn.Module] = set()
        for frame in frames():
            if frame.f_code is _CALL:
                module = frame.f_locals["self"]
                if module in called:
                    return
                called.add(module)
            yield frame

    def around(self) -> FrameType | None:
        """The innermost running method of a module that holds the tower."""
        return next((f for f in frames() if self.holds(f.f_locals.get("self"))), None)


def call_of(module: nn.Module) -> FrameType | None:
    """The frame of a module's call, from a hook that runs in it."""
    for frame in frames():
        if frame.f_code is _CALL and frame.f_locals.get("self") is module:
            return frame
    return None


def refuse_nested(module: nn.Module) -> None:
    """Check that a module isn't called inside of a call of its own.

    Raises:
        NotImplementedError: It is.
    """
    calls = (f for f in frames() if f.f_code is _CALL and f.f_locals["self"] is module)
    if next(calls, None) is not None and next(calls, None) is not None:
        raise NotImplementedError(
            f"{type(module).__name__} is called inside of a call of its own (by a hook that runs "
            "the model on another prompt), and what is attached can't keep both apart: run the "
            "other prompt before or behind that call, or detach"
        )


def count_calls(modules: Collection[nn.Module]) -> int:
    """Count the calls of some modules that run now, in all threads."""
    count = 0
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code is _CALL and frame.f_locals.get("self") in modules:
                count += 1
            frame = frame.f_back
    return count


def runs(frame: FrameType | None) -> bool:
    """Return whether a frame is still running in this thread."""
    return frame is not None and any(f is frame for f in frames())


def frames() -> Iterator[FrameType]:
    """The running frames of this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _helpers(loop: Mapping[str, Any]) -> Iterator[Any]:
    """What a loop calls beside its model."""
    names = ("logits_processor", "stopping_criteria", "candidate_generator", "streamer")
    yield from (loop[name] for name in names if loop.get(name) is not None)


def _begins_anew(loop: str, local: Mapping[str, Any]) -> bool:
    """Return whether a loop reads the whole prompt, and the answer so far, in each of its steps."""
    told = local.get("model_kwargs")
    steps = loop in ("_sample", "_beam_search")
    return steps and isinstance(told, Mapping) and told.get("use_cache") is False


def _read(loop: str, local: Mapping[str, Any]) -> Generating:
    if loop == "_assisted_decoding":
        return Generating(candidates=int(local.get("candidate_length", 0)))
    size = getattr(local.get("generation_config"), "prefill_chunk_size", None)
    if loop == "_prefill" and size is not None:
        chunks, chunk = local.get("input_chunks"), local.get("input_chunk")
        if not chunks or not any(chunk is one for one in chunks):
            raise RuntimeError(
                "generate(prefill_chunk_size=...) reads the prompt in parts in a way that regaze "
                "doesn't know in this version of transformers; leave prefill_chunk_size out"
            )
        return Generating(partial=chunk is not chunks[-1])
    return Generating()
