"""How attention calls of a transformers model reach its seat.

One attention function and one mask function are registered under the same name, and that name is
set on the text tower's config only. The function hands the call to the seat, which calls the
attention the model had before (sdpa, flash, flex, eager) and writes over its output. Without the
mask function under the same name transformers would hand out no padding mask at all, silently.

Registration is global to the process, so the registered functions hold no state: they look up the
seat of the module that calls them and find none for every other model.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks.rows import Call

PREFIX = "regaze_"
Attention = tuple[Tensor, Tensor | None]


class Seated(Protocol):
    """What is looked up for an attention module."""

    def attend(self, layer: int, stock: Callable[..., Attention], call: Call) -> Attention:
        """Answer an attention call of one layer."""


Seating = tuple[Seated, int, Callable[..., Attention]]
SEATS: MutableMapping[nn.Module, Seating] = weakref.WeakKeyDictionary()
"""Seat, layer index and stock function of each attention module with something attached."""


def register(base: str) -> str:
    """Register the pair of functions for one stock implementation; return their name."""
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:

        @torch.compiler.disable
        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any,
            *args: Any,
            **kwargs: Any,
        ) -> Attention:
            found = SEATS.get(module)
            if found is None or args:
                stock = stock_attention(type(module), base)
                return stock(module, query, key, value, attention_mask, *args, **kwargs)
            seat, layer, stock = found
            call = Call(module, query, key, value, attention_mask, kwargs, maps=base == "eager")
            return seat.attend(layer, stock, call)

        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def stock_attention(kind: type[nn.Module], base: str) -> Callable[..., Attention]:
    """What the module would have called: its own file may override a name, and owns eager."""
    for cls in kind.__mro__:
        home = sys.modules.get(cls.__module__)
        functions = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)
        if functions is not None:
            eager = getattr(home, "eager_attention_forward", None)
            found: Callable[..., Attention] | None = functions.get(base, eager)
            if found is not None:
                return found if base in ("eager", "sdpa", "flex_attention") else _named(found, base)
    raise RuntimeError(f"{kind.__name__}: no attention function named {base!r}")


def _named(stock: Callable[..., Attention], base: str) -> Callable[..., Attention]:
    """A stock function that looks its kernel up by the config's name: flash and hub kernels."""

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Attention:
        config: Any = module.config
        ours = config._attn_implementation_internal
        config._attn_implementation_internal = base
        try:
            return stock(module, *args, **kwargs)
        finally:
            config._attn_implementation_internal = ours

    return attention
