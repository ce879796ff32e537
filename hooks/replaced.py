"""Code that others put in the place of a module's ``forward``, and what it keeps between calls.

A second run beside a pass (a perturbed branch, say) calls such code once more, on other inputs.
What it keeps, as a step cache written by hand does, would then be the second run's when the next
pass reads it. So the objects that it can reach (closures, globals, arguments' defaults, attributes)
are looked at before and after a second run, which must leave them as they were; only a ``forward``
may go on counting. Libraries' own code in such a place (offloading, casting, compilation) is
known. What hooks by ``register_forward_hook`` keep isn't looked at: most of them look on.
"""

from __future__ import annotations

import dis
import functools
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import length_hint
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast
from weakref import WeakSet

from torch import Tensor, nn

from regaze.hooks.calls import own_class

_QUANTIZERS = ("awq", "bitsandbytes", "gptqmodel", "hqq", "optimum", "torchao")
_MODELS = ("accelerate", "diffusers", "kernels", "liger_kernel", "peft", "torch", "transformers")
_LIBRARIES = frozenset((*_MODELS, *_QUANTIZERS, "regaze"))
"""Packages whose code in the place of a ``forward`` keeps nothing that a run depends on."""
_OWNERS = ("diffusers", "transformers")
_CLOSED = _LIBRARIES | {"_thread", "logging", "numpy", "threading", "tqdm", "triton", "weakref"}
"""Packages whose objects are one thing each, not looked into."""
_OWN_OF_TORCH = frozenset(vars(nn.Module()))
_MOST = 20_000
_BY_OTHER_NAMES = ("__dict__", "getattr", "vars")
"""Names by which code may read attributes that it doesn't name."""
_VALUES = (bool, bytes, complex, float, int, str, type(None))
_ROWS = (deque, frozenset, list, set, tuple)

Names = frozenset[str]
_NO_NAMES: Names = frozenset()
Found = dict[str, tuple[Any, Any, Names]]
"""Objects by the way to them, each with a mark of its present state, and the names of others'
attributes on that way."""


_CLEAN: dict[type, Any] = {}
"""The ``forward`` of classes of modules that is no code of others'."""
_CLEAN_CODE: WeakSet[Any] = WeakSet()
"""What stands in a module's place and is no code of others' either."""


def own(module: nn.Module) -> bool:
    """Return whether a module runs its own code, and libraries' around it."""
    held, cls = vars(module), cast(Any, module.__class__)
    code, processor = held.get("forward"), held.get("processor")
    known = _CLEAN.get(cls) is cls.forward if code is None else code in _CLEAN_CODE
    return (known and processor is None) or not _code(module)


def replaced(model: nn.Module) -> dict[str, list[Any]]:
    """Code that others put in place of what a model's parts run, by the part's path.

    That is a ``forward`` set on a module, or on a class of diffusers or transformers, and an
    attention processor that is none of diffusers'.
    """
    left = [model]
    while left:  # In each second run, so quicker than by `named_modules()`.
        if not own(module := left.pop()):
            parts = model.named_modules()
            return {path: code for path, part in parts if (code := _code(part))}
        left += [part for part in module._modules.values() if part is not None]
    return {}


def _code(module: nn.Module) -> list[Any]:
    """The code of others' in a module's place, and what it is likely to keep things on."""
    held, cls = vars(module), cast(Any, own_class(type(module)))
    code = held.get("forward", cls.forward if _package(cls.__module__) in _OWNERS else None)
    if (others := _others(code)) is not None:
        return [others, module]
    if "forward" in held:
        _CLEAN_CODE.add(code)
    else:
        _CLEAN[type(module)] = type(module).forward
    processor = held.get("processor")
    if processor is None or _home(own_class(type(processor)).__call__) in _LIBRARIES:
        return []
    return [processor]


@contextmanager
def keeping_nothing(model: nn.Module) -> Iterator[None]:
    """Run a model a second time inside.

    Raises:
        ValueError: Code in the place of a module's own has kept something of the run.
    """
    code = replaced(model)
    if not code:
        yield
        return
    before = {path: _seen(roots) for path, roots in code.items()}
    yield
    _compare(model, code, before)


def _compare(model: nn.Module, code: Mapping[str, list[Any]], before: Mapping[str, Found]) -> None:
    for path, roots in code.items():
        # A forward's counts are for whoever looks on: what caches keep are tensors. Controllers of
        # attention go by counts, of layers and steps.
        controller = len(roots) == 1
        if changed := _changed(before[path], _seen(roots), values=controller):
            raise ValueError(
                f"what runs in the place of {path or type(model).__name__}'s own forward (or "
                f"attention processor) keeps something from call to call (its {changed}), as step "
                "caches written by hand do, and a second run beside this pass was mixed up with "
                "it: give it its own back, or look on by register_forward_hook"
            )


def _others(code: Any) -> Any:
    """The innermost code of others, inside of libraries' hooks around it; None if there is none."""
    while code is not None:
        if (inside := getattr(code, "_torchdynamo_orig_callable", None)) is None:
            if _home(code) not in _LIBRARIES:
                return code
            inside = getattr(code, "__wrapped__", None)
        code = inside
    return None


def _home(code: Any) -> str:
    """The package that code was written in, whatever it calls itself."""
    if isinstance(code, functools.partial):
        return _home(code.func)
    if isinstance(code, MethodType):
        return _home(code.__func__)
    if isinstance(code, FunctionType):
        return _package(code.__globals__.get("__name__"))
    return _package(type(code).__module__)


def _package(name: Any) -> str:
    return str(name).partition(".")[0]


# -- what code can reach -----------------------------------------------------------------------


def _seen(roots: list[Any]) -> Found:
    """The objects that can be reached from some."""
    found: Found = {}
    known: set[int] = set()
    left: deque[tuple[str, Any, Names]] = deque(("", root, frozenset()) for root in roots)
    while left and len(found) < _MOST:
        path, thing, through = left.popleft()
        found[path or f"{len(found)}"] = thing, _mark(thing), through
        if id(thing) not in known:
            known.add(id(thing))
            of_others = _package(type(thing).__module__) not in _CLOSED
            for step, part in _parts(thing):
                own = {step[1:]} if of_others and step[0] == "." else _NO_NAMES
                left.append((f"{path}{step}", part, through | own))
    return found


def _changed(before: Found, after: Found, values: bool) -> str:
    """The way to the first thing that isn't what it was; empty if all is.

    Numbers and words count as such only if asked for.

    What others' objects were only told, and no code of theirs that was reached looks at, is left
    out: a map that is kept for whoever asks, say.
    """
    read = set[str]().union(*(_read(x.__code__) for x, *_ in after.values() if _is_theirs(x)))
    every = not read.isdisjoint(_BY_OTHER_NAMES)
    for path in before.keys() | after.keys():
        one, mark, through = before.get(path, (None, 0, _NO_NAMES))
        other, now, _ = after.get(path, (None, 1, _NO_NAMES))
        if isinstance(one, _VALUES) and isinstance(other, _VALUES) and not values:
            continue
        if (type(one) is not type(other) or mark != now) and (every or through <= read):
            return path.lstrip(". ")
    return ""


def _is_theirs(thing: Any) -> bool:
    return isinstance(thing, FunctionType) and _home(thing) not in _CLOSED


def _read(code: CodeType) -> set[str]:
    """The names of attributes that code reads, as far as they stand in it."""
    steps = dis.get_instructions(code)
    found = {str(step.argval) for step in steps if step.opname.startswith("LOAD_")}
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return found.union(*map(_read, inner))


def _mark(thing: Any) -> Any:
    """A mark that differs for another thing, and for the same one once it was changed."""
    if isinstance(thing, _VALUES):
        return repr(thing)
    if isinstance(thing, Tensor):
        if not thing.is_inference():
            return id(thing), thing._version
        return id(thing), thing.detach().double().nan_to_num().sum().item()
    if isinstance(thing, (dict, *_ROWS)):
        return len(thing)
    if type(thing).__module__ == "itertools":
        return repr(thing)  # With its number, if it counts.
    if isinstance(thing, Iterator) and type(thing).__module__ == "builtins":
        return id(thing), length_hint(thing)
    return id(thing)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """The things that a thing holds, with the step to them, for attributes with a dot before it."""
    own = type(thing)
    if isinstance(thing, FunctionType):
        if _is_theirs(thing):
            yield from _reached(thing)
    elif isinstance(thing, MethodType):
        yield from ((" function", thing.__func__), (" self", thing.__self__))
    elif isinstance(thing, functools.partial):
        yield from ((" function", thing.func), (" given", (thing.args, thing.keywords)))
    elif isinstance(thing, dict):
        yield from ((f"[{key!r}]", value) for key, value in list(thing.items()))
    elif isinstance(thing, _ROWS):
        yield from ((f"[{n}]", value) for n, value in enumerate(list(thing)))
    elif isinstance(thing, type):
        held, kept = list(vars(thing).items()), (*_VALUES, FunctionType, Tensor, dict, *_ROWS)
        yield from ((f" {n}", x) for n, x in held if isinstance(x, kept) and n[:2] != "__")
        if isinstance(code := vars(thing).get("__call__"), FunctionType):
            yield "()", code
    elif isinstance(thing, (Tensor, ModuleType, *_VALUES)):
        return
    elif isinstance(thing, nn.Module) or _package(own.__module__) not in _CLOSED:
        held = list(getattr(thing, "__dict__", {}).items())
        torchs = _OWN_OF_TORCH if isinstance(thing, nn.Module) else _NO_NAMES
        yield from ((f".{name}", value) for name, value in held if name not in torchs)
        if _package(own.__module__) not in _CLOSED:
            yield " class", own


def _reached(code: FunctionType) -> Iterator[tuple[str, Any]]:
    """The names and values that a function reads beside its arguments."""
    for name, cell in zip(code.__code__.co_freevars, code.__closure__ or (), strict=True):
        with suppress(ValueError):  # It may be empty yet.
            yield f" {name}", cell.cell_contents
    globals_ = code.__globals__
    yield from ((f" {n}", globals_[n]) for n in sorted(_names(code.__code__)) if n in globals_)
    given = (*(code.__defaults__ or ()), *(code.__kwdefaults__ or {}).values())
    yield from ((f" default {n}", value) for n, value in enumerate(given))
    yield from ((f" {name}", value) for name, value in vars(code).items())


def _names(code: CodeType) -> set[str]:
    """The global names that code uses, and functions inside of it."""
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*map(_names, inner))
