"""The path of a transformers model's attention calls to its seat.

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "regaze_"
Attention = tuple[Tensor, Tensor | None]
Stock = Callable[..., Attention]


@dataclass(eq=False)
class Call:
    """The arguments of one attention call; never changed.

    Attributes:
        module: The attention module.
        query: "B H Q D".
        key: "B G K D".
        value: "B G K D".
        mask: In whatever form the stock function takes it.
        kwargs: Further arguments, handed on untouched.
        base: Name of the stock function: "sdpa", "eager", ...
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    kwargs: dict[str, Any]
    base: str

    @property
    def maps(self) -> bool:
        """True if the stock function returns its attention weights."""
        return self.base == "eager"

    @property
    def scaling(self) -> float:
        """Factor of the logits."""
        scaling = self.kwargs.get("scaling")
        return float(self.query.shape[-1] ** -0.5 if scaling is None else scaling)

    @property
    def causal(self) -> bool:
        """True if a mask that doesn't say so itself implies causality."""
        causal = self.kwargs.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if causal is None else causal)

    def run(self, stock: Stock) -> Attention:
        """Call the stock function."""
        out, weights = stock(
            self.module, self.query, self.key, self.value, self.mask, **self.kwargs
        )
        return out, weights


@dataclass(frozen=True)
class Seating:
    """The seat that answers the attention calls of one module.

    Attributes:
        seat: The seat itself.
        attend: Answers a call, given the layer, the stock function and the call.
        layer: Layer index.
        stock: Function that the module would have called.
    """

    seat: object
    attend: Callable[[int, Stock, Call], Attention]
    layer: int
    stock: Stock


SEATS: MutableMapping[nn.Module, Seating] = weakref.WeakKeyDictionary()
"""The seating of each attention module with something attached."""


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
            if found is None:
                if getattr(module, "_is_replica", False):
                    raise RuntimeError(
                        "torch.nn.DataParallel runs copies of the model, and what is attached to "
                        "the model doesn't reach them; run one process per device (accelerate "
                        "launch), or attach nothing"
                    )
                stock = stock_attention(type(module), base)
                return stock(module, query, key, value, attention_mask, *args, **kwargs)
            if args:
                raise NotImplementedError(
                    f"{type(module).__name__} gives its attention function arguments by position "
                    "that regaze can't name, so it can't be edited exactly"
                )
            call = Call(module, query, key, value, attention_mask, kwargs, base)
            return found.attend(found.layer, found.stock, call)

        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def stock_attention(kind: type[nn.Module], base: str) -> Stock:
    """Find the module's own attention function: its file may override a name, and owns eager."""
    for cls in kind.__mro__:
        home = sys.modules.get(cls.__module__)
        functions = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)
        if functions is not None:
            eager = getattr(home, "eager_attention_forward", None)
            found: Stock | None = functions.get(base, eager)
            if found is not None:
                return found if base in ("eager", "sdpa", "flex_attention") else _named(found, base)
    raise RuntimeError(f"{kind.__name__}: no attention function named {base!r}")


def _named(stock: Stock, base: str) -> Stock:
    """A stock function that looks its kernel up by the config's name: flash and hub kernels."""

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Attention:
        return stock(_View(module, config=_View(module.config, **_names(base))), *args, **kwargs)

    return attention


def _names(base: str) -> dict[str, str]:
    return {"_attn_implementation": base, "_attn_implementation_internal": base}


class _View:
    """An object with some attributes replaced; the object itself, which others see, stays."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)
