"""Run a prompt a second time without its image, in the same forward pass.

The prompt's text tokens are packed behind it as S more columns of the same row, with positions of
their own. Attention is called once for each part, so that neither sees the other: what comes out
of the second part is exactly the prompt without its image. That costs (T + S) / T of a prefill, a
tenth more for a short question, where a second row would cost as much as the first. The packed
columns never enter the caller's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import ModelOutput

from regaze.hooks.attention import visible_columns
from regaze.hooks.passes import Pass
from regaze.hooks.rows import Call
from regaze.hooks.tokens import Kind

Positions = Literal["drop", "mask"]


class PackedCache(Cache):
    """Looks like the caller's cache but keeps only the first ``length`` new columns in it."""

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
class NullPrompt:
    """The text columns of a prompt, packed behind it.

    Attributes:
        length: Columns T of the prompt.
        columns: "B S", the prompt columns that are packed; padding and text.
        valid: "B S" bool; samples with fewer text columns are filled in front. None: all valid.
        last: "B", index among the packed columns of the last real token.
    """

    length: int
    columns: Tensor
    valid: Tensor | None
    last: Tensor

    @classmethod
    def of(cls, pass_: Pass) -> NullPrompt:
        """The null prompt of a block that is a whole prompt."""
        text = ~pass_.tokens.is_kind(Kind.IMAGE, Kind.SEPARATOR)
        size = int(text.sum(1).max())
        columns = text.int().argsort(dim=1, stable=True)[:, -size:]
        valid = text.gather(1, columns)
        last = (columns == pass_.last_rows[:, None]).int().argmax(1)
        return cls(
            length=pass_.length,
            columns=columns.to(pass_.device),
            valid=None if valid.all() else valid.to(pass_.device),
            last=last.to(pass_.device),
        )

    def pack(self, kwargs: Mapping[str, Any], positions: Positions, config: Any) -> dict[str, Any]:
        """Extend the tower's inputs.

        Args:
            kwargs: The tower's arguments.
            positions: "drop" numbers positions as if the image tokens were not there, "mask"
                keeps those of the prompt.
            config: The tower's config.

        Raises:
            NotImplementedError: A sliding window would count image columns that aren't there.
        """
        window = sliding_window(config)
        if window is not None and window < self.length and positions == "drop":
            raise NotImplementedError(
                f"the prompt is longer than this model's sliding window ({window}), which counts "
                "image columns that aren't there in a prompt without image; use "
                'null_image="mask"'
            )
        packed = dict(kwargs)
        for name in ("inputs_embeds", "input_ids"):
            if isinstance(entering := kwargs.get(name), Tensor):
                packed[name] = torch.cat([entering, self._take(entering)], 1)
        if isinstance(visual := kwargs.get("visual_pos_masks"), Tensor):
            # Qwen3-VL adds vision features again in early layers; none of them are here.
            packed["visual_pos_masks"] = torch.cat(
                [visual, torch.zeros_like(self.columns).bool()], 1
            )
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(self.columns)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = self._take(mask)
            packed["attention_mask"] = torch.cat([mask, real], 1)
        packed["position_ids"] = self._positions(kwargs.get("position_ids"), real, positions)
        cache, uses_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and (config.use_cache if uses_cache is None else uses_cache):
            cache = DynamicCache(config=config)
        if cache is not None:
            packed["past_key_values"] = PackedCache(cache, self.length)
        return packed

    def _take(self, x: Tensor) -> Tensor:
        """Packed columns of "B T ..."."""
        index = self.columns.to(x.device).reshape(*self.columns.shape, *[1] * (x.ndim - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def _positions(self, given: Tensor | None, real: Tensor, positions: Positions) -> Tensor:
        if given is None:
            given = torch.arange(self.length, device=real.device)[None]
        # "1|B T", or "3|4 B T" of M-RoPE, where a text prompt has the same number on every axis.
        given = given.expand(*given.shape[:-2], len(self.columns), self.length)
        if positions == "drop":
            counted = real.long() if self.valid is None else real.long() * self.valid
            new = (counted.cumsum(1) - 1).clamp(min=0).expand(*given.shape[:-1], -1)
        else:
            new = given.gather(-1, self.columns.expand(*given.shape[:-1], -1))
        return torch.cat([given, new], -1)

    def real(self, call: Call) -> Call:
        """The prompt's own part of an attention call."""
        n_keys = call.key.shape[2] - self.columns.shape[1]
        return replace(
            call,
            query=call.query[:, :, : self.length],
            key=call.key[:, :, :n_keys],
            value=call.value[:, :, :n_keys],
            mask=self._real_mask(call.mask, n_keys),
            # Positions tell flash kernels of packed sequences; here they'd mislead them.
            kwargs={k: v for k, v in call.kwargs.items() if k != "position_ids"},
        )

    def run(self, call: Call, stock: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
        """Attention of both parts, each within itself: "B T+S H D", and maps of the first."""
        real = self.real(call)
        n_keys = real.key.shape[2]
        null = replace(
            real,
            query=call.query[:, :, self.length :],
            key=call.key[:, :, n_keys:],
            value=call.value[:, :, n_keys:],
            mask=self._null_mask(real.mask, real),
        )
        out, weights = real.run(stock)
        dense = hasattr(real.mask, "mask_mod")
        text, _ = null.run(sdpa_attention_forward if dense else stock)
        return torch.cat([out, text], 1), weights

    def last_row(self, out: Tensor) -> Tensor:
        """Head outputs "B H D" at the packed prompt's last token, out of "B T+S H D"."""
        last = self.length + self.last.to(out.device)
        return out[torch.arange(len(out), device=out.device), last]

    def _real_mask(self, mask: Any, n_keys: int) -> Any:
        if isinstance(mask, Tensor):
            if mask.ndim == 2:
                return mask[:, : self.length]
            return mask[..., : self.length, :n_keys]
        if hasattr(mask, "mask_mod"):
            # What a block mask says of the first columns doesn't depend on those behind them.
            return mask._adjust(self.length, n_keys)
        return mask

    def _null_mask(self, mask: Any, call: Call) -> Any:
        """The prompt's mask among its packed columns; what it doesn't say is causal."""
        if isinstance(mask, Tensor) and mask.ndim == 2:
            taken = self._take(mask)
            return taken if self.valid is None else taken * self.valid.to(taken.device)
        if mask is None and self.valid is None:
            return None
        columns = self.columns.to(call.query.device)
        seen, bias = visible_columns(
            mask,
            columns,
            call.key.shape[2],
            query_offset=0,
            causal=getattr(call.module, "is_causal", True),
            window=None,
        )
        index = columns[:, None, None].expand(-1, 1, columns.shape[1], -1)
        if seen is None:
            raise RuntimeError("a mask that hides nothing was not expected here")
        seen = seen.expand(len(index), 1, *seen.shape[2:]).gather(3, index)
        if self.valid is not None:
            # A row that sees nothing would be NaN.
            itself = torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
            seen = (seen & self.valid[:, None, None].to(seen.device)) | itself
        if bias is None:
            return seen
        bias = bias.expand(len(index), 1, *bias.shape[2:]).gather(3, index)
        low = torch.finfo(call.query.dtype).min
        return bias.to(call.query.dtype).masked_fill(~seen, low)

    def cut(self, output: Any) -> Any:
        """The tower's output without the packed columns."""
        total = self.length + self.columns.shape[1]

        def keep(value: Any) -> Any:
            if isinstance(value, PackedCache):
                return value.real
            if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == total:
                return value[:, : self.length]
            if isinstance(value, tuple):
                return tuple(keep(v) for v in value)
            return value

        if isinstance(output, ModelOutput):
            for name in list(output):
                output[name] = keep(output[name])
            return output
        return keep(output)


def sliding_window(config: Any) -> int | None:
    """The window of the tower's sliding layers, if it has any."""
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or "sliding_attention" in types else None
