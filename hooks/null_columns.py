"""The columns of a prompt without its images, and what its rows see of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.attention import visible_columns
from regaze.hooks.dispatch import Call


@dataclass(frozen=True)
class NullColumns:
    """The text columns behind a prompt's first image, and what their rows see.

    Attributes:
        length: Columns T of the prompt.
        first: "B", how many columns at its beginning both runs share: those before the first
            image, or none.
        shared: The most of them in any row.
        columns: "B S", the prompt columns that are packed.
        valid: "B S" bool; samples with fewer columns are filled in front.
    """

    length: int
    first: Tensor
    shared: int
    columns: Tensor
    valid: Tensor
    _masks: list[tuple[Any, Tensor, Tensor | None]] = field(default_factory=list, kw_only=True)

    @property
    def size(self) -> int:
        """Packed columns S."""
        return self.columns.shape[1]

    def real_mask(self, mask: Any, n_keys: int) -> Any:
        """The prompt's own part of a mask."""
        if isinstance(mask, Tensor):
            if mask.ndim == 2:
                return mask[:, : self.length]
            return mask[..., : self.length, :n_keys]
        if hasattr(mask, "mask_mod"):
            # What a block mask says of the first columns doesn't depend on those behind them.
            return mask._adjust(self.length, n_keys)
        return mask

    def columns_seen(self, mask: Any) -> Tensor:
        """The padding mask "B P+S" of the shared and the packed columns."""
        shared = torch.arange(self.shared, device=self.first.device) < self.first[:, None]
        if isinstance(mask, Tensor):
            shared = shared & mask[:, : self.shared].to(shared.device).bool()
        seen = torch.cat([shared, self.valid], 1)
        return seen.to(mask) if isinstance(mask, Tensor) else seen.long()

    def seen(self, given: Any, real: Call) -> tuple[Tensor, Tensor | None]:
        """Return the mask of the packed rows, bool "B 1|H S P+S", and the bias on their logits.

        Both are read off the prompt's mask; what that doesn't say is causal. Layers share masks,
        so each is read once.
        """
        window = real.kwargs.get("sliding_window")
        # Hooks of others may write to a mask between layers; of inference tensors it isn't seen.
        counts = isinstance(given, Tensor) and not given.is_inference()
        version = given._version if counts else None
        key = (given, version, window, real.query.device, real.key.shape[2])
        for known, seen, bias in self._masks if counts or not isinstance(given, Tensor) else ():
            if known[0] is given and known[1:] == key[1:]:
                return seen, bias
        self._check_shared(real)
        columns, device = self.columns.to(real.query.device), real.query.device
        seen, bias = self._read(real, columns)
        shared = torch.arange(self.shared, device=device).expand(len(columns), -1)
        index = torch.cat([shared, columns], 1)[:, None, None]
        seen = seen.expand(len(columns), *seen.shape[1:])
        seen = seen.gather(3, index.expand(*seen.shape[:3], -1))
        inside = shared < self.first.to(device)[:, None]
        seen = seen & torch.cat([inside, self.valid.to(device)], 1)[:, None, None]
        # A row that sees nothing would be NaN.
        itself = torch.eye(self.size, dtype=torch.bool, device=device)
        seen = seen | torch.nn.functional.pad(itself, (self.shared, 0))
        if bias is not None:
            bias = bias.expand(len(columns), *bias.shape[1:])
            bias = bias.gather(3, index.expand(*bias.shape[:3], -1))
        # Only the masks of the latest kinds of layers: one that is moved to a device is new there.
        self._masks[:] = [*self._masks[-3:], (key, seen, bias)]
        return seen, bias

    def _read(self, real: Call, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        seen, bias = visible_columns(
            real.mask,
            rows,
            real.key.shape[2],
            query_offset=0,
            causal=real.causal,
            window=real.kwargs.get("sliding_window"),
        )
        if seen is None:
            raise RuntimeError("a mask that hides nothing was not expected here")
        return seen, bias

    def _check_shared(self, real: Call) -> None:
        """Check that no row before the first image sees anything from there on.

        Raises:
            NotImplementedError: One does, so the two runs share nothing.
        """
        mask_says = not (real.mask is None or getattr(real.mask, "ndim", 4) == 2)
        if not self.shared or (real.causal and not mask_says):
            return
        device = real.query.device
        rows = torch.arange(self.shared, device=device).expand(len(self.first), -1)
        seen, _ = self._read(real, rows)
        first = self.first.to(device)[:, None, None, None]
        columns = torch.arange(seen.shape[-1], device=device)
        if (seen & (columns >= first) & (rows[:, None, :, None] < first)).any():
            raise NotImplementedError(
                f"in {type(real.module).__name__} text before the image sees the image, so the "
                "prompt without image can't share it"
            )
