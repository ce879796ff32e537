"""Hooks of others on a model: how they stand to ours, and what second runs of the model owe them.

They may be registered before something is attached or after it, and may change what they are given.
Ours stand inside of them in either case, so they see what enters a layer in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as shared

from regaze.hooks.replaced import own

Hook = Callable[..., Any]
KINDS = ("_forward_pre_hooks", "_forward_hooks")

_READERS = ("regaze.", "transformers.", "torch.")
"""Beginnings of modules whose hooks change nothing, or all rows and columns alike."""


def by_others(hook: Hook) -> bool:
    """Return whether a hook may change what it is given."""
    return not str(getattr(hook, "__module__", "")).startswith(_READERS)


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """A model and its parts; one that it holds twice comes twice.

    Asked for at every step of decoding or sampling, so three times as quick as ``modules()``.
    """
    left = [model]
    while left:
        module = left.pop()
        yield module
        left += [part for part in module._modules.values() if part is not None]


def hooked(model: nn.Module) -> bool:
    """Return whether others have forward hooks on a model or a part of it, or code in its place."""
    held = [shared._global_forward_pre_hooks, shared._global_forward_hooks]
    for module in parts(model):
        held += [module._forward_pre_hooks, module._forward_hooks]
        if not own(module):
            return True
    return any(by_others(hook) for hooks in held if hooks for hook in hooks.values())


def go_inside(module: nn.Module, owner: object) -> bool:
    """Put an owner's hooks on a module inside of all others.

    Returns:
        True if those before ``forward`` stood there.
    """
    stood = True
    for kind, last in zip(KINDS, (True, False), strict=True):
        hooks = vars(module)[kind]
        keys = list(hooks)
        own = [key for key in keys if getattr(hooks[key], "__self__", None) is owner]
        if own and own != (keys[-len(own) :] if last else keys[: len(own)]):
            stood = stood and not last
            for key in own if last else reversed(own):
                hooks.move_to_end(key, last=last)
    return stood


def run_before(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as others' hooks before a module's ``forward`` leave them.

    Raises:
        NotImplementedError: A hook makes positional arguments of them.
    """
    kwargs = dict(given)
    for key, hook in list(module._forward_pre_hooks.items()):
        if not by_others(hook):
            continue
        if key in module._forward_pre_hooks_with_kwargs:
            args, kwargs = hook(module, (), kwargs) or ((), kwargs)
        else:
            args = hook(module, ())
        if args:
            raise NotImplementedError(
                f"a hook before {type(module).__name__}.forward returns positional arguments, and "
                "a second run of the model has names for all: let it change keyword arguments"
            )
    return kwargs
