"""The stack: the ordered edits of one tower, their coming and going, and its attention calls."""

from __future__ import annotations

import inspect
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from regaze.hooks.callers import count_calls
from regaze.hooks.dispatch import (
    PREFIX,
    SEATS,
    Attention,
    Call,
    Seating,
    Stock,
    register,
    stock_attention,
)
from regaze.hooks.edits import Edit
from regaze.hooks.shown import give_back
from regaze.hooks.tally import Entry

LayerEntry = Entry[Edit, int]
KWARG = "regaze_running"
"""The keyword argument that hands a pass to layers that are run again later."""
_INSTALLED: weakref.WeakSet[Stack] = weakref.WeakSet()


class Attending(Protocol):
    """A forward pass of a tower, while it runs."""

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """Answer an attention call."""


class Here(threading.local):
    """The state of a stack in one thread."""

    running: Attending | None = None
    paused: bool = False


class Stack(ABC):
    """The ordered stack of edits of one tower, and the hooks that they need to run.

    What belongs to a call is kept per thread (`Here`). A deep copy of the model carries our hooks
    along, with this stack, and they find that its tower is none of theirs.

    Attributes:
        kind: Kind of tower, for messages.
        tower: The tower, weakly.
        entries: The edits, in the order in which they act.
        note: Remark on the tower in reports, if anything has to be said.
    """

    kind: str
    note: str = ""
    here: type[Here] = Here

    def __init__(self, model: nn.Module, tower: nn.Module, paths: Mapping[int, str]) -> None:
        self.tower = weakref.ref(tower)
        self.entries: list[LayerEntry] = []
        self._model = weakref.ref(model)
        self._paths = paths
        self._names = list(inspect.signature(type(tower).forward).parameters)[1:]
        self._by_layer: dict[int, tuple[LayerEntry, ...]] = {}
        self._here: Any = self.here()
        self._checked: set[tuple[int, bool]] = set()
        self._hooked: list[weakref.ref[nn.Module]] = []
        self._configs: list[tuple[Any, str]] = []

    def __deepcopy__(self, memo: object) -> Stack:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Nowhere, ()

    # -- coming and going -----------------------------------------------------------------------

    def push(self, entry: LayerEntry) -> None:
        """Put an edit on top of the stack; the first one installs it.

        Raises:
            ValueError: It can't act here, or contradicts one that is already there.
        """
        self._check(entry)
        if not self._hooked:
            self._install()
        self._prepare(entry)
        self.entries.append(entry)
        self._sort()
        self._checked = set()

    def pop(self, entry: LayerEntry) -> None:
        """Take an edit off, from anywhere in the stack; the last one uninstalls it.

        A pass under way, in whatever thread, ends as it began, and leaves nothing behind then. May
        be called again: it finishes what an interrupt left undone.
        """
        self.entries[:] = [one for one in self.entries if one is not entry]
        self._sort()
        self._retire()

    def busy(self) -> bool:
        """Return whether edits act, or a pass is under way in which they did."""
        return bool(self.entries) or (bool(self._hooked) and count_calls(self._hosts()) > 0)

    def _hosts(self) -> set[nn.Module]:
        """The modules in whose calls edits act."""
        tower = self.tower()
        return set() if tower is None else {tower}

    def _retire(self, calls: int = 0) -> None:
        """Uninstall if nothing is on the stack and no pass is under way.

        Args:
            calls: Number of calls of the hosts that the caller knows to be ending: 1 in a hook.
        """
        if not self.entries and count_calls(self._hosts()) <= calls:
            self.uninstall()

    def _sort(self) -> None:
        self._by_layer = at_layers(self.entries)  # A new object: passes under way keep theirs.
        if self.entries and self.tower() is not None:
            self._watch()

    @abstractmethod
    def _check(self, entry: LayerEntry) -> None:
        """Check that an edit can act here, beside those that are there."""

    def _prepare(self, entry: LayerEntry) -> None:
        """Put in place what an edit needs, before it is on the stack."""
        return

    def _watch(self) -> None:
        """Put in place what the edits on the stack need."""
        return

    def _alive(self) -> Any:
        tower = self.tower()
        if tower is None:
            raise RuntimeError("the model that this was attached to no longer exists")
        return tower

    def _install(self) -> None:
        tower = self._alive()
        attentions = {layer: tower.get_submodule(path) for layer, path in self._paths.items()}
        configs = {id(m.config): m.config for m in [tower, *attentions.values()]}
        bases = {}
        _INSTALLED.add(self)
        for key, config in configs.items():
            # A config that another attached model shares, or that was copied while attached,
            # already has our name.
            base = str(config._attn_implementation or "eager").removeprefix(PREFIX)
            bases[key] = base
            name = register(base)
            self._configs.append((config, base))
            # The property's setter would pass the name on to sub-configs.
            config._attn_implementation_internal = name
        for layer, module in attentions.items():
            stock = stock_attention(type(module), bases[id(module.config)])
            SEATS[module] = Seating(self, self.attend, layer, stock)
        self._hook(tower)
        self._note(tower)
        tower.register_forward_pre_hook(self._begin, with_kwargs=True)
        tower.register_forward_hook(self._ended, always_call=True)

    def _hook(self, tower: Any) -> None:
        """Hook what else must be seen around the tower's passes."""
        return

    def _note(self, module: nn.Module) -> None:
        """Remember where hooks are, before they are there."""
        self._hooked.append(weakref.ref(module))

    def uninstall(self) -> None:
        """Take everything off the model; once more if it was interrupted."""
        for reference in self._hooked:
            if (module := reference()) is not None:
                _unhook(module, self)
        for module in [m for m, seating in list(SEATS.items()) if seating.seat is self]:
            SEATS.pop(module, None)
        others = [stack for stack in list(_INSTALLED) if stack is not self]
        shared = {id(config) for stack in others for config, _ in stack._configs}
        for config, base in self._configs:
            if id(config) not in shared:
                config._attn_implementation_internal = base
        self._here = self.here()
        self._configs = []
        self._hooked = []
        _INSTALLED.discard(self)

    # -- passes and their attention calls -------------------------------------------------------

    @abstractmethod
    def _begin(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begin a pass: a hook before the tower's ``forward``."""

    @abstractmethod
    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        """End the pass: a hook behind the tower's ``forward``."""

    @torch.compiler.disable
    def _ended(self, tower: nn.Module, args: Any, output: Any) -> Any:
        try:
            return self._end(tower, args, output)
        finally:
            if tower is self.tower():
                self._retire(calls=1)

    def _check_names(self) -> None:
        for config, _ in self._configs:
            now = config._attn_implementation_internal  # The public property is slow.
            if not str(now).startswith(PREFIX):
                raise RuntimeError(
                    f"the model's attention implementation was changed to {now!r} while "
                    "interventions were attached, which would silently switch them off; detach "
                    "first, then change it"
                )

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """Answer an attention call.

        Raises:
            RuntimeError: The layer runs outside of any pass of the tower.
        """
        handed: Attending | None = call.kwargs.pop(KWARG, None)
        running: Attending | None = handed or self._here.running
        if running is not None:
            return running.attend(layer, stock, call)
        if not self._here.paused and layer in self._by_layer:
            raise RuntimeError(
                f"layer {layer} runs outside of a forward pass of its {self.kind} tower that began "
                "with what is attached (attached in the middle of it, or gradient checkpointing "
                "that doesn't hand arguments on to the layers), so it can't act: attach between "
                "passes, and call model.gradient_checkpointing_disable()"
            )
        return call.run(stock)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes of this thread inside are none of the edits' business."""
        before = self._here.paused, self._here.running
        self._here.paused, self._here.running = True, None
        try:
            yield
        finally:
            self._here.paused, self._here.running = before

    @contextmanager
    def others_paused(self) -> Iterator[None]:
        """Passes of the model's other towers inside are none of the edits' business."""
        with ExitStack() as held:
            for stack in list(_INSTALLED):
                if stack is not self and stack._model() is self._model():
                    held.enter_context(stack.paused())
            yield


def at_layers(entries: Sequence[LayerEntry]) -> dict[int, tuple[LayerEntry, ...]]:
    """The entries that act at each layer, in order."""
    layers = {layer for entry in entries for layer in entry.work.layers}
    return {i: tuple(entry for entry in entries if i in entry.work.layers) for i in layers}


@contextmanager
def paused(tower: nn.Module) -> Iterator[None]:
    """Forward passes of the tower inside are none of the attached interventions' business."""
    stacks = [stack for stack in list(_INSTALLED) if stack.tower() is tower]
    if not stacks:
        yield
        return
    with stacks[0].paused():
        yield


class _Nowhere:
    """The stand-in for a stack's hooks in a model that is loaded from a file."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _unhook(module: nn.Module, stack: Stack) -> None:
    """Take a stack's hooks off a module, found by whose they are; others' are as they were."""
    give_back(module, stack)
    for hooks, extras in (
        (module._forward_pre_hooks, [module._forward_pre_hooks_with_kwargs]),
        (
            module._forward_hooks,
            [module._forward_hooks_with_kwargs, module._forward_hooks_always_called],
        ),
    ):
        for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is stack]:
            # The hook itself last: as long as it is there, it can be found again.
            for extra in extras:
                extra.pop(key, None)
            hooks.pop(key, None)
