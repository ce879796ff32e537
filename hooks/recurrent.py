"""A layer that carries a state from column to column, beside a prompt without images.

Linear attention, convolutions and state spaces read a row from left to right, so columns packed
behind a prompt would be read as its continuation, and left in its state. Such a layer is run twice:
on the prompt, with the caller's cache, and on what the prompt without images consists of, the
columns that both share and the packed ones, from an empty state.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from regaze.hooks.null_prompt import NullPrompt

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Apart:
    """The two runs of one layer.

    Attributes:
        null: The prompt without images.
        hidden: "B T+S E", what enters the layer.
        args: The layer's arguments behind it.
        kwargs: Likewise.
    """

    null: NullPrompt
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, null: NullPrompt, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Apart:
        """Read a layer's arguments."""
        if args:
            return cls(null, args[0], args[1:], kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return cls(null, kwargs["hidden_states"], (), rest)

    def prompt(self) -> Arguments:
        """The layer's arguments for the prompt itself."""
        length, kwargs = self.null.length, dict(self.kwargs)
        if (mask := self._mask()) is not None:
            kwargs["attention_mask"] = mask[:, :length]
        return (self.hidden[:, :length], *self.args), kwargs

    def join(self, layer: nn.Module, output: Any) -> Any:
        """Run the layer on the prompt without images; put its packed columns behind the output."""
        first = output[0] if isinstance(output, tuple) else output
        both = torch.cat([first, self._packed(layer).to(first.dtype)], 1)
        return (both, *output[1:]) if isinstance(output, tuple) else both

    def _mask(self) -> Tensor | None:
        """The padding mask "B T+S", if the layer is given one."""
        mask, size = self.kwargs.get("attention_mask"), self.hidden.shape[1]
        fits = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == size
        return mask if fits else None

    def _packed(self, layer: nn.Module) -> Tensor:
        null, device = self.null, self.hidden.device
        columns = torch.arange(null.shared, device=device)
        valid = columns < null.first.to(device)[:, None]
        mask = self._mask()
        if mask is not None:
            valid = valid & mask[:, : null.shared].bool()
        valid = torch.cat([valid, null.valid.to(device)], 1)
        behind = torch.arange(null.length, self.hidden.shape[1], device=device)
        # What isn't part of it stands in front, as padding does.
        order = valid.int().argsort(dim=1, stable=True)
        taken = torch.cat([columns, behind])[order]
        hidden = self.hidden.gather(1, taken[..., None].expand(-1, -1, self.hidden.shape[2]))
        seen = valid.gather(1, order)
        kwargs = {k: None if isinstance(v, Cache) else v for k, v in self.kwargs.items()}
        kwargs["attention_mask"] = None if bool(seen.all()) else seen.long()
        # Recorders of a layer's insides (router logits) know by context that they are at work.
        output = Context().run(layer.forward, hidden, *self.args, **kwargs)
        outputs: Tensor = output[0] if isinstance(output, tuple) else output
        back = order.argsort(1)[:, null.shared :, None]
        return outputs.gather(1, back.expand(-1, -1, outputs.shape[2]))
