"""Run a prompt a second time without its images, as extra batch rows of the same forward pass.

The tower gets every row twice; in the copy the image columns are masked for everyone else. With
positions renumbered this equals dropping the image tokens from the prompt. The copies never enter
the caller's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.generic import ModelOutput

from regaze.hooks.attention import gather_rows
from regaze.hooks.edits import Step
from regaze.hooks.rows import Call
from regaze.hooks.tokens import Kind


class NullRowsCache(Cache):
    """Looks like the caller's cache but keeps only the first ``batch`` rows in it."""

    def __init__(self, real: Cache, batch: int) -> None:
        # No super().__init__: everything but `update` reads the real cache's layers.
        self.real = real
        self.batch = batch
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
        """Store the real rows; hand back both halves, the copies padded to the same length."""
        keys, values = self.real.update(
            key_states[: self.batch], value_states[: self.batch], layer_idx, *args, **kwargs
        )
        # A static cache returns its whole length; its unfilled tail is masked.
        tail = keys.shape[-2] - key_states.shape[-2]
        pad = (0, 0, 0, tail)
        null_keys = torch.nn.functional.pad(key_states[self.batch :], pad)
        null_values = torch.nn.functional.pad(value_states[self.batch :], pad)
        return torch.cat([keys, null_keys]), torch.cat([values, null_values])


def add_null_rows(
    kwargs: dict[str, Any], step: Step, positions: Literal["drop", "mask"], config: Any
) -> dict[str, Any]:
    """Double the tower's inputs.

    Args:
        kwargs: The tower's arguments.
        step: The prompt.
        positions: "drop" numbers the copies' positions as if the image tokens were not there,
            "mask" keeps them.
        config: The tower's config.

    Raises:
        NotImplementedError: The attention mask is of a kind that can't be doubled, or a sliding
            window would still count the image columns.
    """
    image = step.tokens.is_kind(Kind.IMAGE, Kind.SEPARATOR).to(step.device)
    doubled = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == step.batch:
            doubled[name] = torch.cat([value, value])
    if isinstance(visual := kwargs.get("visual_pos_masks"), Tensor):
        # Qwen3-VL adds vision features again in early layers; the copies have no image.
        doubled["visual_pos_masks"] = torch.cat([visual, torch.zeros_like(visual)])

    real = (~step.tokens.is_kind(Kind.PAD)).to(step.device)
    mask = kwargs.get("attention_mask")
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        mask = real.long() if mask is None else mask
        doubled["attention_mask"] = torch.cat([mask, mask.masked_fill(image, 0)])
    elif isinstance(mask, dict):
        doubled["attention_mask"] = {k: _hide(m, image, step) for k, m in mask.items()}
    else:
        doubled["attention_mask"] = _hide(mask, image, step)
    window = sliding_window(config)
    if window is not None and window < step.length and positions == "drop":
        raise NotImplementedError(
            f"the prompt is longer than this model's sliding window ({window}), which counts image "
            'columns that aren\'t there in a prompt without image; use null_image="mask"'
        )

    given = kwargs.get("position_ids")
    if given is None:
        given = torch.arange(step.length, device=step.device)[None]
    given = given.expand(*given.shape[:-2], step.batch, step.length)
    null = given
    if positions == "drop":
        kept = real & ~image
        null = (kept.long().cumsum(1) - 1).clamp(min=0).expand_as(given)
    # M-RoPE positions are "3|4 B T"; a text-only prompt has the same number on every axis.
    doubled["position_ids"] = torch.cat([given, null], dim=given.ndim - 2)

    cache = kwargs.get("past_key_values")
    uses_cache = kwargs.get("use_cache")
    if cache is None and (config.use_cache if uses_cache is None else uses_cache):
        cache = DynamicCache(config=config)
    if cache is not None:
        doubled["past_key_values"] = NullRowsCache(cache, step.batch)
    return doubled


def text_columns(kwargs: dict[str, Any], step: Step) -> Tensor | None:
    """The columns "B S" of the prompt without its images, if all attention there is plain causal.

    Then copies can attend among these columns only (`run_apart`), with no mask to build: less work
    than a row with image. With padding, prepared masks, sliding windows or a static cache, None.

    Args:
        kwargs: The tower's arguments before doubling.
        step: The prompt.
    """
    mask = kwargs.get("attention_mask")
    plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()))
    text = ~step.tokens.is_kind(Kind.IMAGE, Kind.SEPARATOR)
    counts = text.sum(1)
    if not plain or step.tokens.is_kind(Kind.PAD).any() or (counts != counts[0]).any():
        return None
    if getattr(kwargs.get("past_key_values"), "is_compileable", False):
        return None
    return text.nonzero()[:, 1].reshape(step.batch, -1).to(step.device)


def run_apart(
    stock: Callable[..., Any], call: Call, batch: int, columns: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Attention of the real rows as always, and of the copies among their text columns.

    Args:
        stock: The stock attention function.
        call: Both halves.
        batch: Real rows B.
        columns: "B S" of `text_columns`.

    Returns:
        "2B Q H D"; zero at the image columns of the copies, which nobody reads.
    """
    kwargs = {k: v for k, v in call.kwargs.items() if k != "position_ids"}
    real, _ = replace(call.first(batch), mask=None, kwargs=kwargs).run(stock)
    query, key, value = (
        gather_rows(x[batch:], columns) for x in (call.query, call.key, call.value)
    )
    text, _ = replace(call, query=query, key=key, value=value, mask=None, kwargs=kwargs).run(stock)
    index = columns[:, :, None, None].expand_as(text)
    return torch.cat([real, torch.zeros_like(real).scatter(1, index, text)]), None


def drop_null_rows(output: Any, batch: int) -> Any:
    """Keep the real rows of the tower's output."""

    def keep(value: Any) -> Any:
        if isinstance(value, NullRowsCache):
            return value.real
        if isinstance(value, Tensor) and value.shape[:1] == (2 * batch,):
            return value[:batch]
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


def _hide(mask: Any, image: Tensor, step: Step) -> Tensor:
    """Double a prepared "B 1 Q K" mask, with the image columns hidden in the copies."""
    if mask is None:
        causal = torch.ones(step.length, step.length, dtype=torch.bool, device=step.device).tril()
        mask = causal[None, None]
    if not isinstance(mask, Tensor):
        raise NotImplementedError(
            f"this model prepares a {type(mask).__name__} before its text tower, which can't be "
            'doubled for the rows without image; load it with attn_implementation="sdpa"'
        )
    mask = mask.expand(step.batch, -1, -1, -1)
    columns = torch.nn.functional.pad(image, (0, mask.shape[-1] - image.shape[-1]))
    # A row that sees nothing would be NaN: image rows keep seeing themselves. Nobody reads them.
    itself = torch.eye(step.length, mask.shape[-1], dtype=torch.bool, device=mask.device)
    hidden = columns[:, None, None] & ~itself
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return torch.cat([mask, mask.masked_fill(hidden, blocked)])
