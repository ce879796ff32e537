"""A text tower's cache and arguments where columns are packed behind a prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class PackedCache(Cache):
    """A cache like the caller's that keeps only the first ``length`` new columns in it."""

    def __init__(self, real: Cache, length: int) -> None:
        # No super().__init__: everything but `update` reads the real cache's layers.
        self.real = real
        self.length = length
        self.layers = real.layers
        self.layer_class_to_replicate = getattr(real, "layer_class_to_replicate", None)
        self.offloading = False

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Store the prompt's columns; hand back those of the cache and the packed ones."""
        n = self.length
        keys, values = self.real.update(
            key_states[:, :, :n], value_states[:, :, :n], layer_idx, *args, **kwargs
        )
        return (
            torch.cat([keys, key_states[:, :, n:]], 2),
            torch.cat([values, value_states[:, :, n:]], 2),
        )


@dataclass(frozen=True)
class Inputs:
    """The tower's arguments besides embeddings, mask and positions.

    Attributes:
        packs: Names of those with one entry per column.
        zeros: Likewise, but what vision adds: zero in a prompt without images.
        window: Columns of the narrowest sliding window or chunk, if there is one.
        rescales: Columns beyond which rotary angles depend on a prompt's length, if they do.
        counts: Columns beyond which layers count columns themselves, packed ones too, if they do.
    """

    packs: Collection[str] = ()
    zeros: Collection[str] = ()
    window: int | None = None
    rescales: int | None = None
    counts: int | None = None
