"""Run code around the calls of one object, whatever ends them.

torch runs a module's forward hooks after an `Exception` only, so what a hook has entered stays
entered after Ctrl-C; and a ``forward`` that is replaced on a module is given back by accelerate.
So while something is registered, the object's class is a subclass that overrides the call, with
`try` and `finally` left to whoever runs around it. Copies and pickles made meanwhile are of the
object's own class, and run nothing.
"""

from __future__ import annotations

import copyreg
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from regaze.hooks.locks import BriefLock

Around = Callable[..., Any]
"""``around(thing, call, /, *args, **kwargs)``, which calls ``call(*args, **kwargs)`` or doesn't."""

_BASE = "_called_as"
_LOCK = BriefLock()


@dataclass
class _Entry:
    """The code that runs around one object's calls."""

    thing: weakref.ref[Any]
    held: dict[tuple[int, Around, bool], bool] = field(default_factory=dict)

    def arounds(self, inner: bool) -> list[Around]:
        """Return the callables to run around, each once, however many owners hold it."""
        return list(dict.fromkeys(around for _, around, is_inner in self.held if is_inner == inner))


# By id, because things may compare as they like; an entry goes when its thing does.
_ENTRIES: dict[int, _Entry] = {}


class Calls:
    """The code that one owner runs around the calls of objects, until `release`.

    Owners don't see each other: they may begin and end in any order, and what two of them run
    around one object runs once.
    """

    def __init__(self) -> None:
        self._things: dict[int, weakref.ref[Any]] = {}

    def around(
        self, thing: Any, around: Around, *, inner: bool = False, opaque: bool = False
    ) -> None:
        """Run code around an object's calls from now on; a second time does nothing.

        Args:
            thing: A module, or another callable object.
            around: ``around(thing, call, /, *args, **kwargs)``.
            inner: Around a module's ``forward``, inside of others' hooks. Where others replaced
                ``forward``, around the call.
            opaque: True if compiled code is to break where it calls the object. Otherwise it takes
                no notice, and nothing runs around its calls.

        Raises:
            TypeError: Its class can't be exchanged, as that of a function.
        """
        with _LOCK:
            entry = _entry_of(thing)
            entry = entry if entry is not None else _Entry(_reference(thing))
            self._things[id(thing)] = entry.thing
            _ENTRIES[id(thing)] = entry
            entry.held[id(self), around, inner] = opaque
            _dress(thing, entry)

    def covers(self, thing: Any) -> bool:
        """Return whether something of this owner runs around an object's calls."""
        found = self._things.get(id(thing))
        return found is not None and found() is thing

    def release(self, keep: Callable[[Any], bool] = lambda thing: False) -> None:
        """Run nothing around calls from now on, but of things to keep. May be called again."""
        with _LOCK:
            for key, reference in list(self._things.items()):
                thing = reference()
                if thing is not None:
                    if keep(thing):
                        continue
                    entry = _entry_of(thing)
                    if entry is not None:
                        for held in [h for h in entry.held if h[0] == id(self)]:
                            entry.held.pop(held, None)
                        _dress(thing, entry)
                        if not entry.held:
                            _ENTRIES.pop(key, None)
                self._things.pop(key, None)


def _reference(thing: Any) -> weakref.ref[Any]:
    key = id(thing)

    def forget(gone: weakref.ref[Any]) -> None:
        entry = _ENTRIES.get(key)
        if entry is not None and entry.thing is gone:
            _ENTRIES.pop(key, None)

    return weakref.ref(thing, forget)


def _entry_of(thing: Any) -> _Entry | None:
    entry = _ENTRIES.get(id(thing))
    return entry if entry is not None and entry.thing() is thing else None


class _Compiled:
    """A module's compiled call, with code around it: a new class would compile it anew."""

    def __init__(self, module: Any, stock: Callable[..., Any]) -> None:
        self._module, self.stock = weakref.ref(module), stock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        return _nested(module, _arounds(module, False) + _arounds(module, True), self.stock)(
            *args, **kwargs
        )


def _dress(thing: Any, entry: _Entry | None) -> None:
    """Give an object the class that its entry asks for, or its own if it asks for none."""
    base = own_class(type(thing))
    compiled = getattr(thing, "__dict__", {}).get("_compiled_call_impl")
    if isinstance(compiled, _Compiled) or (compiled is not None and base is type(thing)):
        stock = compiled.stock if isinstance(compiled, _Compiled) else compiled
        held = entry is not None and bool(entry.held)
        thing.__dict__["_compiled_call_impl"] = _Compiled(thing, stock) if held else stock
        return
    if base is type(thing) and any(_BASE in vars(c) for c in type(thing).__mro__):
        return  # Someone else's class is above ours, which runs what is registered, or nothing.
    wanted: type = base
    if entry is not None and entry.held:
        inner = any(is_inner for _, _, is_inner in entry.held)
        wanted = _called(base, inner, any(entry.held.values()))
    if wanted is not type(thing):
        object.__setattr__(thing, "__class__", wanted)


def own_class(cls: type) -> type:
    """The class that objects of a class have while nothing runs around their calls."""
    found: type = vars(cls).get(_BASE, cls)
    return found


@functools.cache
def _called(base: Any, inner: bool, opaque: bool) -> Any:
    """The subclass whose calls run what is registered for the object."""

    @functools.wraps(base.__call__)  # Signatures of calls are read by others.
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Whoever took this method may call it when the object has its own class again.
        stock = functools.partial(base.__call__, self)
        if torch.compiler.is_compiling():
            return _apart(self, stock, args, kwargs) if opaque else stock(*args, **kwargs)
        return _run(self, stock, args, kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        found = super(made, self).__reduce_ex__(protocol)
        if isinstance(found, str):
            return found
        own = own_class(type(self))
        made_of, arguments, *rest = found
        if made_of is copyreg.__newobj__ and len(arguments) == 1:  # type: ignore[attr-defined]
            # That one pickles objects of their present class only.
            return (copyreg._reconstructor, (own, object, None), *rest)  # type: ignore[attr-defined]
        swapped = tuple(own if x is type(self) else x for x in (made_of, *arguments))
        return (swapped[0], swapped[1:], *rest)

    names = {
        "__call__": call, "__reduce_ex__": reduce, "__module__": base.__module__,
        "__qualname__": base.__qualname__, "__doc__": base.__doc__, _BASE: base,
    }  # fmt: skip
    if hasattr(base, "enable_cache"):
        names["enable_cache"] = _no_caching
    if inner:

        @functools.wraps(base.forward)
        def forward(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            stock = functools.partial(base.forward, self)
            if torch.compiler.is_compiling() or "forward" in vars(self):
                return stock(*args, **kwargs)
            return _nested(self, _arounds(self, True), stock)(*args, **kwargs)

        names["forward"] = forward
    meta: Any = type(base)
    made: Any = _equal_to_base(meta)(base.__name__, (base,), names)
    return made


@functools.cache
def _equal_to_base(meta: Any) -> Any:
    """The metaclass of subclasses that count as their base in tables of classes.

    diffusers finds blocks, processors and the parts that pipelines share by the class itself.
    """

    def same(cls: Any, other: Any) -> bool:
        return own_class(cls) is (own_class(other) if isinstance(other, type) else other)

    def hashed(cls: Any) -> int:
        return hash(own_class(cls)) if _BASE in vars(cls) else meta.__hash__(cls)  # type: ignore[no-any-return]

    return type(meta)(meta.__name__, (meta,), {"__eq__": same, "__hash__": hashed})


def _no_caching(self: Any, config: Any) -> None:
    """Refuse step caching of diffusers, which goes by the classes of blocks.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"{type(config).__name__} can't be switched on while interventions are attached to this "
        f"{type(self).__name__}: step caching would skip edited layers and mix the branches up; "
        "detach first"
    )


def _run(thing: Any, stock: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    arounds = _arounds(thing, False)
    if "forward" in vars(thing):
        arounds = arounds + _arounds(thing, True)
    if not arounds and _entry_of(thing) is None:
        with _LOCK:  # Left by someone who gave it back the class that it had while registered.
            _dress(thing, _entry_of(thing))
    return _nested(thing, arounds, stock)(*args, **kwargs)


# Compiled code breaks where it is called, and nothing that runs inside is compiled.
_apart = torch.compiler.disable(_run)


def _arounds(thing: Any, inner: bool) -> list[Around]:
    entry = _entry_of(thing)
    return [] if entry is None else entry.arounds(inner)


def _nested(thing: Any, arounds: list[Around], call: Callable[..., Any]) -> Callable[..., Any]:
    """A call with code around it; what was registered first is outermost."""
    for around in reversed(arounds):
        call = functools.partial(around, thing, call)
    return call


def held() -> Iterator[Any]:
    """Return the objects around whose calls something runs now."""
    for entry in list(_ENTRIES.values()):
        thing = entry.thing()
        if thing is not None:
            yield thing
