"""Hooks of others while a prompt without its images runs behind the prompt, in the same rows.

As two runs, both would call a hook for themselves: the last row would be each prompt's own, and
masks would have its columns. So a hook is called for the prompt; and if it changes more than the
mask, which is read off the prompt's for both, for the other one too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.null_prompt import NullPrompt
from regaze.hooks.others import KINDS, Hook, by_others
from regaze.hooks.packing import PackedCache

Packing = Callable[[], NullPrompt | None]
"""Finds the prompt without images that runs behind another one in this thread, if one does."""


class Shown:
    """A hook of others, called for one prompt at a time; in all other passes it is the hook.

    Args:
        hook: The hook.
        before: True if it runs before ``forward``.
        keywords: True if it is given keyword arguments.
        packing: See `Packing`.
        owner: Who put this in the hook's place.
    """

    def __init__(
        self, hook: Hook, before: bool, keywords: bool, packing: Packing, owner: object
    ) -> None:
        self.__module__ = str(getattr(hook, "__module__", ""))
        self.hook, self.owner = hook, owner
        self._packing, self._before, self._keywords = packing, before, keywords

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Call the hook, for each prompt if there are two."""
        null = self._packing()
        if null is None or not null.size:
            return self.hook(module, *given)
        both, old = _Both(null), self._changeable(given)
        prompt = both.show(given, 0)
        first, new = self._run(module, prompt)
        if not both.changed(given, prompt) and not both.changed(old, new):
            return None if first is None else both.join(old, new, new)
        text = both.show(given, 1)
        second, other = self._run(module, text)
        both.write_back(given, text)
        return None if first is None and second is None else both.join(old, new, other)

    def _changeable(self, given: tuple[Any, ...]) -> Any:
        if not self._before:
            return given[-1]
        return given[:2] if self._keywords else given[0]

    def _run(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, Any]:
        """Run the hook; return what it returns, and what stands in place of what it was given."""
        found = self.hook(module, *given)
        if found is None:
            return None, self._changeable(given)
        one = self._before and not self._keywords and not isinstance(found, tuple)
        return found, (found,) if one else found

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return copy.deepcopy(self.hook, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.hook,)


def show_each(tower: nn.Module, packing: Packing, owner: object) -> Iterator[nn.Module]:
    """Show hooks of others on the parts of a tower one prompt at a time from now on.

    Yields:
        Each part, before that.
    """
    for module in list(tower.modules())[1:]:
        for kind, keywords in zip(
            KINDS,
            (module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs),
            strict=True,
        ):
            hooks = vars(module)[kind]
            new = [k for k, h in hooks.items() if by_others(h) and not isinstance(h, Shown)]
            if new:
                yield module
            for key in new:
                hooks[key] = Shown(hooks[key], kind == KINDS[0], key in keywords, packing, owner)


def give_back(module: nn.Module, owner: object) -> None:
    """Put hooks of others back in their places."""
    for kind in KINDS:
        hooks = vars(module)[kind]
        for key, hook in list(hooks.items()):
            if isinstance(hook, Shown) and hook.owner is owner:
                hooks[key] = hook.hook


class _Both:
    """Two prompts in the same rows, told apart.

    Args:
        null: The prompt that follows the other one.
    """

    def __init__(self, null: NullPrompt) -> None:
        self.null, self.total = null, null.length + null.size
        self._parts: dict[int, tuple[Any, Any, Any]] = {}

    def is_mask(self, x: Any) -> bool:
        """Return whether a tensor says what rows see."""
        # Models that make a mask outside of the tower make it for the prompt alone.
        square = isinstance(x, Tensor) and x.ndim == 4 and x.shape[-2] == x.shape[-1]
        return square and x.shape[-1] in (self.total, self.null.length)

    def axis(self, x: Any) -> int | None:
        """The dimension along which a tensor has the columns of both prompts, if it has one."""
        if not isinstance(x, Tensor) or self.is_mask(x):
            return None
        if x.ndim == 2 and x.shape[0] == self.total and len(self.null.columns) == 1:
            return 0  # Routers of experts are given the rows of all samples in one.
        found = {3: (1, 2), 4: (1, 2), 2: (1,)}.get(x.ndim, ())
        return next((axis for axis in found if x.shape[axis] == self.total), None)

    def show(self, value: Any, number: int) -> Any:
        """The part that belongs to the prompt (0), or to the one without its images (1)."""
        if isinstance(value, Mapping):
            return _like(value, {k: self.show(v, number) for k, v in value.items()})
        if isinstance(value, (tuple, list)):
            return type(value)([self.show(v, number) for v in value])
        part = self._part(value, number)
        self._parts[id(part)] = part, value, _mark(part)
        return part

    def _part(self, value: Any, number: int) -> Any:
        length = self.null.length
        if isinstance(value, PackedCache) and number == 0:
            return value.real
        if self.is_mask(value) or hasattr(value, "mask_mod"):
            mask = self.null.real_mask(value, length)
            return self._text_mask(mask) if number and isinstance(mask, Tensor) else mask
        axis = self.axis(value)
        if axis is None:
            return value
        if not number:
            return value.narrow(axis, 0, length)
        beginning = value.narrow(axis, 0, self.null.shared)
        return torch.cat([beginning, value.narrow(axis, length, self.null.size)], axis)

    def _text_mask(self, mask: Tensor) -> Tensor:
        """The mask "B H P+S P+S" of the prompt without its images, off the prompt's."""
        columns = self.null.columns.to(mask.device)
        shared = torch.arange(self.null.shared, device=mask.device).expand(len(columns), -1)
        kept = torch.cat([shared, columns], 1)
        mask = mask.expand(len(columns), *mask.shape[1:])
        rows = kept[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        mask = mask.gather(2, rows)
        return mask.gather(3, kept[:, None, None].expand(*mask.shape[:3], -1))

    def _same(self, old: Any, new: Any) -> bool:
        part, whole, mark = self._parts.get(id(new), (None, None, None))
        return new is part and whole is old and _stays(part, mark)

    def changed(self, old: Any, new: Any) -> bool:
        """Return whether anything but a mask is new, or was written to.

        Raises:
            NotImplementedError: Something is, in which the prompts can't be told apart.
        """
        if isinstance(new, (Mapping, tuple, list)):
            return any([self.changed(a, b) for a, b in _pairs(old, new)])
        if not isinstance(new, Tensor) or self._same(old, new) or self.is_mask(old):
            return False
        if old is None and new.ndim == 4:
            return False
        if self.axis(old) is None:
            raise _mixed()
        return True

    def write_back(self, old: Any, text: Any) -> None:
        """Write to a tensor what was written to the text's part of it, which is a copy."""
        if isinstance(text, (Mapping, tuple, list)):
            for a, b in _pairs(old, text):
                self.write_back(a, b)
        elif (axis := self.axis(old)) is not None and not self._same(old, text):
            size = self.null.size
            old.narrow(axis, self.null.length, size).copy_(text.narrow(axis, -size, size))

    def join(self, old: Any, first: Any, second: Any) -> Any:
        """Join what the calls for both prompts left into one; masks are the prompt's.

        Raises:
            NotImplementedError: They can't be joined, or the beginning that both have in common
                isn't the same any more.
        """
        if isinstance(first, (Mapping, tuple, list)):
            new = [
                self.join(a, b, c)
                for (a, b), (_, c) in zip(_pairs(old, first), _pairs(old, second), strict=True)
            ]
            if isinstance(first, Mapping):
                return _like(first, dict(zip(first, new, strict=True)))
            return type(first)(new)
        if self._same(old, first) and (second is first or self._same(old, second)):
            return old
        if (axis := self.axis(old)) is None:
            return first
        size, shared = self.null.size, self.null.shared
        sizes = [getattr(x, "shape", ())[axis : axis + 1] for x in (first, second)]
        if sizes != [(self.null.length,), (shared + size,)]:
            raise _mixed()
        one, other = (x.narrow(axis, 0, shared) for x in (first, second))
        if not torch.equal(one, other):
            raise NotImplementedError(
                "a hook that isn't regaze's changes the text before the image otherwise in the "
                "prompt without its images (as one that counts rows from the end may), and both "
                "share it here (VHR): take off the hook or the intervention"
            )
        return torch.cat([first, second.narrow(axis, -size, size)], axis)


def _mixed() -> NotImplementedError:
    return NotImplementedError(
        "a hook that isn't regaze's changes something in which the prompt can't be told from the "
        "same without its images, which stands behind it (VHR): take off the hook or the "
        "intervention"
    )


def _pairs(old: Any, new: Any) -> list[tuple[Any, Any]]:
    if isinstance(new, Mapping):
        named = old if isinstance(old, Mapping) else {}
        return [(named.get(name), value) for name, value in new.items()]
    held = list(old) if isinstance(old, (tuple, list)) else []
    return list(zip([*held, *[None] * (len(new) - len(held))], new, strict=False))


def _like(value: Mapping[str, Any], held: dict[str, Any]) -> Any:
    return held if type(value) is dict else type(value)(**held)


def _mark(x: Any) -> Any:
    """A mark by which it is seen that a tensor was written to."""
    if not isinstance(x, Tensor):
        return None
    return x.clone() if x.is_inference() else x._version


def _stays(x: Any, mark: Any) -> bool:
    if isinstance(mark, Tensor):
        return torch.equal(x, mark)
    return mark is None or bool(mark == x._version)


def _itself(hook: Hook) -> Hook:
    return hook
