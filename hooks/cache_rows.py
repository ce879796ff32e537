"""A check that the rows of a cache are still those of the prompts that filled it.

Rows that a cache's own methods move are followed. But its tensors can also be changed directly,
which no shape tells. So a few keys of each row are kept, and looked at again whenever the cache's
tensor isn't the one that the last pass left.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.tokens import Kind, TokenMap

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF = 1e-2


@dataclass(frozen=True, eq=False)
class CacheRows:
    """Keys of each row at a column of its image, at the end of its prompt, and at a few more.

    Attributes:
        layer: Layer of the cache.
        columns: "B N" columns.
        keys: "B G N D".
        tensor: The cache's tensor, when it was looked at last.
    """

    layer: int
    columns: Tensor
    keys: Tensor
    tensor: weakref.ref[Tensor]

    @classmethod
    def of(cls, cache: Any, tokens: TokenMap) -> CacheRows | None:
        """Note the rows of a cache that holds a whole block; None if it has no plain keys."""
        layers = getattr(cache, "layers", [])
        for layer in reversed(range(len(layers))):
            if (keys := _plain_keys(layers[layer])) is not None:
                break
        else:
            return None
        column = torch.arange(tokens.kinds.shape[1], device="cpu")
        image = torch.where(tokens.kinds == Kind.IMAGE, column, 0).amax(1)
        # What is generated may be rolled back.
        last = torch.where(tokens.kinds != Kind.GENERATED, column, 0).amax(1)
        # However few columns are left of it, some tell whether they are its first ones.
        prompt = (tokens.kinds != Kind.GENERATED).all(0).tolist()
        powers = [2**n for n in range(len(prompt).bit_length()) if 2**n < len(prompt)]
        more = column[[at for at in powers if prompt[at]]].expand(len(last), -1)
        columns = torch.cat([image[:, None], last[:, None], more], 1)
        return cls(layer, columns, _pick(keys, columns), weakref.ref(keys))

    def seen(self, cache: Any) -> CacheRows:
        """The same rows, in the tensor that the cache has now."""
        keys = _plain_keys(cache.layers[self.layer])
        if keys is None:
            return self
        return CacheRows(self.layer, self.columns, self.keys, weakref.ref(keys))

    def select(self, rows: Tensor) -> CacheRows:
        """Return the notes on some rows, in their order."""
        return replace(self, columns=self.columns[rows], keys=self.keys[rows.to(self.keys.device)])

    def check(self, cache: Any, length: int) -> None:
        """Check that each row still holds its own prompt.

        Args:
            cache: The cache.
            length: Number of columns in the cache.

        Raises:
            ValueError: A row holds another one's.
        """
        keys = _plain_keys(cache.layers[self.layer])
        if keys is None or keys is self.tensor():
            return
        left = self.columns < length  # Of a prompt that was rolled back.
        now = _pick(keys, self.columns.where(left, 0))
        known, counted = self.keys.to(now.device), left[:, None].to(now.device)
        off = (now - known).float().norm(dim=-1).where(counted, 0).amax((1, 2))
        size = known.float().norm(dim=-1).amax((1, 2))
        if not bool((off <= _TOLERANCE.get(now.dtype, _HALF) * size).all()):
            raise ValueError(
                "rows of the cache were put in another order within one prompt, or columns taken "
                "out of its middle, and the cache wasn't asked for that: move rows by "
                "reorder_cache, batch_select_indices or batch_repeat_interleave, and take columns "
                "off its end by crop, which are followed"
            )


def _plain_keys(layer: Any) -> Tensor | None:
    """The keys of a cache layer that keeps all its columns as they are."""
    keys = getattr(layer, "keys", None)
    if not isinstance(keys, Tensor) or keys.ndim != 4 or not keys.shape[2]:
        return None
    changed = getattr(layer, "is_sliding", False) or hasattr(layer, "_quantized_keys")
    return None if changed else keys


@torch.no_grad()
def _pick(keys: Tensor, columns: Tensor) -> Tensor:
    index = columns.to(keys.device)[:, None, :, None]
    return keys.gather(2, index.expand(-1, keys.shape[1], -1, keys.shape[3]))
