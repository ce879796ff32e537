"""Run a prompt a second time without its images, in the same forward pass.

Up to the first image both runs are the same, hidden states and head factors included. So only the
text behind it, S columns, is packed behind the prompt in the same row, with positions of its own;
its attention is called apart, over the keys of the text before the image and its own. What comes
out is exactly the prompt without its images, for (T + S) / T of a prefill. The packed columns
never enter the caller's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import ModelOutput

from regaze.hooks.attention import plain_rows, visible_columns
from regaze.hooks.caches import find_cache, with_cache
from regaze.hooks.dispatch import Attention, Call
from regaze.hooks.null_columns import NullColumns
from regaze.hooks.packing import Inputs, PackedCache
from regaze.hooks.passes import Pass
from regaze.hooks.tokens import Kind

Positions = Literal["drop", "mask"]
_PLAIN = frozenset({"attention_mask", "position_ids"})


def shares_beginning(pass_: Pass, mask: Any) -> bool:
    """Return whether rows before the first image see nothing from there on, by a mask.

    Args:
        pass_: The block, a whole prompt.
        mask: The tower's: one, or one for each kind of layer.
    """
    image, column = pass_.tokens.is_kind(Kind.IMAGE), torch.arange(pass_.length, device="cpu")
    first = torch.where(image, column, pass_.length).amin(1)
    shared = int(first.masked_fill(~image.any(1), 0).max())
    for one in mask.values() if isinstance(mask, Mapping) else (mask,):
        if one is None or (isinstance(one, Tensor) and one.ndim == 2) or not shared:
            continue
        device = one.device if isinstance(one, Tensor) else pass_.device
        rows = torch.arange(shared, device=device).expand(len(first), -1)
        seen, _ = visible_columns(one, rows, pass_.length, query_offset=0, causal=True, window=None)
        begins = first.to(device)[:, None, None, None]
        ahead = (column.to(device) >= begins) & (rows[:, None, :, None] < begins)
        if seen is not None and (seen & ahead).any():
            return False
    return True


@dataclass(frozen=True)
class NullPrompt(NullColumns):
    """The text columns of a prompt behind its first image, packed behind the prompt.

    Attributes:
        last: "B", index among the T + S columns of the last token of the prompt without images;
            of the prompt itself where nothing else would be left.
    """

    last: Tensor

    @classmethod
    def of(cls, pass_: Pass, shares: bool = True) -> NullPrompt:
        """The null prompt of a block that is a whole prompt.

        Args:
            pass_: The block.
            shares: True if rows before the first image see nothing from there on.
        """
        tokens, length = pass_.tokens, pass_.length
        image, column = tokens.is_kind(Kind.IMAGE), torch.arange(length, device="cpu")
        text = tokens.is_kind(Kind.SYSTEM, Kind.QUESTION)
        has_image = image.any(1)
        begins = torch.where(image, column, length).amin(1)
        first = torch.where(has_image, begins, 0) if shares else torch.zeros_like(begins)
        packed = text & has_image[:, None] & (column >= first[:, None])
        size = int(packed.sum(1).max())
        columns = packed.int().argsort(dim=1, stable=True)[:, length - size :]
        # The last text column, which lies before the image if none is packed.
        before = torch.where(text, column, -1).amax(1)
        alone = torch.where(has_image & (before >= 0), before, pass_.last_rows)
        last = torch.where(packed.any(1), length + size - 1, alone)
        device = pass_.device
        return cls(
            length=length,
            first=first.to(device),
            shared=int(first.max()),
            columns=columns.to(device),
            valid=packed.gather(1, columns).to(device),
            last=last.to(device),
        )

    # -- the tower's inputs and output ----------------------------------------------------------

    def pack(
        self, kwargs: Mapping[str, Any], positions: Positions, tower: Any, inputs: Inputs
    ) -> dict[str, Any]:
        """Extend the tower's inputs.

        Args:
            kwargs: The tower's arguments.
            positions: "drop" numbers positions as if the image tokens were not there, "mask"
                keeps those of the prompt.
            tower: The tower.
            inputs: Further arguments that the tower takes.

        Raises:
            NotImplementedError: A window would count image columns that aren't there, or an
                argument has an entry per column and isn't known.
        """
        window = inputs.window
        if window is not None and window < self.length and positions == "drop":
            raise NotImplementedError(
                f"the prompt ({self.length} columns) is longer than this model's sliding window "
                f"or chunk of attention ({window}), which counts image columns that aren't there "
                'in a prompt without image; use null_image="mask"'
            )
        if inputs.rescales is not None and inputs.rescales < self.length and positions == "drop":
            raise NotImplementedError(
                f"this model turns queries and keys otherwise in prompts of more than "
                f"{inputs.rescales} columns (this one has {self.length}), so one without image "
                'can\'t run along; use null_image="mask"'
            )
        packed = dict(kwargs)
        if not self.size:
            return packed
        if inputs.counts is not None and inputs.counts < self.length + self.size:
            raise NotImplementedError(
                f"this model scales queries by their column from column {inputs.counts} on, so a "
                f"prompt without image can't run along behind one of {self.length} columns"
            )
        for name, value in kwargs.items():
            if not isinstance(value, Tensor) or name in _PLAIN:
                continue
            if name in ("inputs_embeds", "input_ids", *inputs.packs):
                packed[name] = torch.cat([value, self._take(value)], 1)
            elif name in inputs.zeros:
                packed[name] = torch.cat([value, torch.zeros_like(self._take(value))], 1)
            elif value.ndim > 1 and value.shape[1] == self.length:
                raise NotImplementedError(
                    f"this model's text tower takes {name!r} per column, and regaze doesn't know "
                    "what it would be in a prompt without image"
                )
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            packed["attention_mask"] = torch.cat([mask, self.valid.to(mask)], 1)
        packed["position_ids"] = self._positions(kwargs.get("position_ids"), positions)
        cache, uses_cache = find_cache(kwargs), kwargs.get("use_cache")
        config = tower.config
        if cache is None and (config.use_cache if uses_cache is None else uses_cache):
            cache = DynamicCache(config=config)
        if cache is not None:
            packed = with_cache(packed, PackedCache(cache, self.length), tower)
        return packed

    def _take(self, x: Tensor) -> Tensor:
        """Packed columns of "B T ..."."""
        x = x.expand(len(self.columns), *x.shape[1:])
        index = self.columns.to(x.device).reshape(*self.columns.shape, *[1] * (x.ndim - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def _positions(self, given: Tensor | None, positions: Positions) -> Tensor:
        batch, columns, valid = len(self.columns), self.columns, self.valid
        if given is None:
            given = torch.arange(self.length, device=columns.device)[None]
        # "1|B T", or "3|4 B T" of M-RoPE, where text has the same number on every axis.
        given = given.expand(*given.shape[:-2], batch, self.length)
        if positions == "mask":
            new = given.gather(-1, columns.to(given.device).expand(*given.shape[:-1], -1))
            return torch.cat([given, new], -1)
        # They go on from the last column that both runs share.
        end = (self.first - 1).clamp(min=0).to(given.device)
        last = given.gather(-1, end[:, None].expand(*given.shape[:-1], 1))
        last = torch.where(self.first.to(given.device)[:, None] > 0, last, -1)
        counted = valid.to(given.device).long().cumsum(1)
        return torch.cat([given, (last + counted).clamp(min=0).to(given.dtype)], -1)

    def cut(self, output: Any) -> Any:
        """The tower's output without the packed columns."""
        total, batch = self.length + self.size, len(self.columns)

        def keep(value: Any) -> Any:
            if isinstance(value, PackedCache):
                return value.real
            if isinstance(value, Tensor) and value.ndim > 2:
                # "B T H", or with several streams "N B T H" or "B T N H".
                for dim in (value.ndim - 2, 1):
                    if value.shape[dim] == total:
                        return value.narrow(dim, 0, self.length)
            if isinstance(value, Tensor) and value.ndim == 2 and len(value) == batch * total:
                # Logits of routers, whose tokens stand in one row.
                return value.unflatten(0, (batch, total))[:, : self.length].flatten(0, 1)
            if isinstance(value, tuple):
                return tuple(keep(v) for v in value)
            return value

        if isinstance(output, ModelOutput):
            for name in list(output):
                output[name] = keep(output[name])
            return output
        return keep(output)

    # -- one attention call ---------------------------------------------------------------------

    def real(self, call: Call) -> Call:
        """The prompt's own part of an attention call."""
        n_keys = call.key.shape[2] - self.size
        return replace(
            call,
            query=call.query[:, :, : self.length],
            key=call.key[:, :, :n_keys],
            value=call.value[:, :, :n_keys],
            mask=self.real_mask(call.mask, n_keys),
            # Positions tell flash kernels of packed sequences; here they'd mislead them.
            kwargs={k: v for k, v in call.kwargs.items() if k != "position_ids"},
        )

    def run(self, call: Call, stock: Callable[..., Attention]) -> Attention:
        """Attention of both parts: "B T+S H D", and maps of the first."""
        real = self.real(call)
        out, weights = real.run(stock)
        if not self.size:
            return out, weights
        return torch.cat([out, self._text(call, real, stock).to(out.dtype)], 1), weights

    def last_row(self, out: Tensor) -> Tensor:
        """Head outputs "B H D" at the last token without images, out of "B T+S H D"."""
        return out[torch.arange(len(out), device=out.device), self.last.to(out.device)]

    def _text(self, call: Call, real: Call, stock: Callable[..., Attention]) -> Tensor:
        """Attention of the packed rows to the shared columns and each other, "B S H D"."""
        n_keys = real.key.shape[2]
        text = replace(
            real,
            query=call.query[:, :, self.length :],
            key=torch.cat([real.key[:, :, : self.shared], call.key[:, :, n_keys:]], 2),
            value=torch.cat([real.value[:, :, : self.shared], call.value[:, :, n_keys:]], 2),
        )
        seen, bias = self.seen(call.mask, real)
        window, mask = real.kwargs.get("sliding_window"), real.mask
        if "flash" in real.base and (window is None or window >= self.length):
            # The last query is aligned with the last key, and padding stands in front.
            return replace(text, mask=self.columns_seen(mask)).run(stock)[0]
        if real.base == "eager" or (isinstance(mask, Tensor) and mask.is_floating_point()):
            low = torch.finfo(text.query.dtype).min
            added = torch.zeros_like(seen, dtype=text.query.dtype) if bias is None else bias
            added = added.to(text.query.dtype).masked_fill(~seen, low)
            return replace(text, mask=added).run(stock)[0]
        if real.base == "sdpa" or (isinstance(mask, Tensor) and mask.ndim == 4):
            return replace(text, mask=seen).run(stock)[0]
        softcap = real.kwargs.get("softcap")
        if real.base == "flex_attention" and softcap is None:
            return replace(text, mask=seen).run(sdpa_attention_forward)[0]
        return plain_rows(text.query, text.key, text.value, real.scaling, softcap, seen, bias)
