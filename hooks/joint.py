"""Second runs of the model as further rows of a step's batch.

Once a prompt is read, a second run gets the same new tokens as the main one. So the model is called
once for both: the main run's rows first, then as many of each second run, whose shorter caches
are padded on the left. Each run keeps a cache of its own, whose keys and values are views of the
joint ones; where somebody moved, copied or cropped them since, they are joined anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from regaze.hooks.caches import NAMES, find_cache, with_cache
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit
from regaze.hooks.others import hooked
from regaze.hooks.running import Running

# Arguments of a step that are known to have a row for each sample.
_OF_ROWS = ("token_type_ids", "mm_token_type_ids")
_KNOWN = (*_OF_ROWS, "input_ids", "attention_mask", "position_ids")
_ROOM = 64
"""Number of columns to allocate ahead."""
_SHOWN = ("output_attentions", "output_hidden_states", "output_router_logits")


@dataclass(frozen=True, eq=False)
class Part:
    """One of the runs that share a step.

    Attributes:
        given: The arguments that the model would be called with for it alone.
        edits: Edits of this run; None for the main run.
    """

    given: Mapping[str, Any]
    edits: tuple[Edit, ...] | None = None

    @property
    def cache(self) -> Any:
        """The run's cache."""
        return find_cache(self.given)


class JointCache(Cache):
    """The cache that the model gets in place of those of several runs, one for each part.

    Attributes:
        parts: The runs, the main one first.
        pads: Columns of padding before each one's own.
        batch: Rows of each.
    """

    layers: list[Any]

    def __init__(self, parts: Sequence[Part], past: Sequence[int], before: Any) -> None:
        self.parts = tuple(parts)
        self.pads = tuple(max(past) - one for one in past)
        self.batch = int(parts[0].given["input_ids"].shape[0])
        own = zip(*(part.cache.layers for part in parts), strict=True)
        known = before.layers if isinstance(before, JointCache) else [None] * len(parts[0].cache)
        super().__init__(
            layers=[
                old if old is not None and old.holds(layers, self.pads) else _Layer(layers, self)
                for old, layers in zip(known, own, strict=True)
            ]
        )

    def rows(self, number: int) -> slice:
        """The rows of one part."""
        return slice(number * self.batch, (number + 1) * self.batch)

    def split(self, joint: Tensor) -> list[Tensor]:
        """A tensor with the rows of all parts, by part."""
        return list(joint.split(self.batch))

    def restore(self, output: Any) -> None:
        """Leave in an output what the main run alone would have got, but for its scores."""
        for name, value in output.items():
            if isinstance(value, JointCache):
                output[name] = self.parts[0].cache
            elif isinstance(value, Tensor) and len(value) == self.batch * len(self.parts):
                output[name] = value[: self.batch]

    def tower(self, number: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """One part's arguments of the text tower, from those of all parts."""
        part = self.parts[number]
        found = {
            name: value[self.rows(number)]
            for name in ("input_ids", "inputs_embeds")
            if isinstance(value := given.get(name), Tensor)
        }
        if isinstance(positions := given.get("position_ids"), Tensor):
            found["position_ids"] = _rows_of(positions, self.rows(number))
        mask = part.given.get("attention_mask")
        return found | {NAMES[0]: part.cache, "attention_mask": mask}

    def attention(self, number: int, call: Call) -> Call:
        """One part's share of an attention call, as if it ran alone."""
        rows, pad, mask = self.rows(number), self.pads[number], call.mask
        if isinstance(mask, Tensor):
            mask = (mask if len(mask) == 1 else mask[rows])[..., pad:]
        kwargs = dict(call.kwargs)
        if isinstance(positions := kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = _rows_of(positions, rows)
        key, value = call.key[rows, :, pad:], call.value[rows, :, pad:]
        return replace(call, query=call.query[rows], key=key, value=value, mask=mask, kwargs=kwargs)


class _Layer(DynamicLayer):
    """A layer of a `JointCache`, with room for columns to come."""

    def __init__(self, own: Sequence[DynamicLayer], joint: JointCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own, self.pads = tuple(own), joint.pads
        self._rows = [joint.rows(number) for number in range(len(self.own))]
        self.past = self.own[0].get_seq_length() + self.pads[0]
        self.handed: list[tuple[Any, Any]] = []
        self._rooms: tuple[Tensor | None, Tensor | None] = None, None
        self.is_initialized = True

    def holds(self, own: Sequence[DynamicLayer], pads: Sequence[int]) -> bool:
        """Return whether the parts' layers still hold what this one handed to them."""
        return (
            len(own) == len(self.handed)
            and tuple(pads) == self.pads
            and all(one is other for one, other in zip(own, self.own, strict=True))
            and all(
                layer.keys is keys and layer.values is values
                for layer, (keys, values) in zip(own, self.handed, strict=True)
            )
        )

    def get_seq_length(self) -> int:
        """Columns before the step's."""
        return self.past

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put new columns behind those of all parts, and hand each part its own."""
        keys, values = self._rooms
        keys = self._room(keys, [layer.keys for layer in self.own], key_states)
        values = self._room(values, [layer.values for layer in self.own], value_states)
        self._rooms, self.past = (keys, values), self.past + key_states.shape[2]
        keys, values = keys[:, :, : self.past], values[:, :, : self.past]
        self.handed = []
        for layer, pad, rows in zip(self.own, self.pads, self._rows, strict=True):
            layer.keys, layer.values = keys[rows, :, pad:], values[rows, :, pad:]
            self.handed.append((layer.keys, layer.values))
        return keys, values

    def _room(self, room: Tensor | None, own: Sequence[Any], new: Tensor) -> Tensor:
        """Return the tensor that holds all columns, the new ones included.

        What was handed out before is never written: columns are added behind it.
        """
        end = self.past + new.shape[2]
        # Autograd wants what it saw unchanged, and inference tensors are for inference mode.
        closed = torch.is_grad_enabled() or (
            room is not None and room.is_inference() and not torch.is_inference_mode_enabled()
        )
        if room is None or closed or room.shape[2] < end:
            room = new.new_empty(*new.shape[:2], end + _ROOM, new.shape[3])
            for rows, pad, one in zip(self._rows, self.pads, own, strict=True):
                room[rows, :, :pad] = 0
                room[rows, :, pad : self.past] = one
        room[:, :, self.past : end] = new
        return room


@dataclass(eq=False)
class Together:
    """A pass of several runs under way; each edits its own rows as if it ran alone.

    Attributes:
        joint: The cache that they share.
        runs: The pass of each part.
    """

    joint: JointCache
    runs: Sequence[Running]
    null: None = None

    @property
    def main(self) -> Running:
        """The main run's pass."""
        return self.runs[0]

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """The stock attention with each run's edits written over its rows."""
        if not any(layer in run.by_layer for run in self.runs):
            return call.run(stock)
        done = [
            run.attend(layer, stock, self.joint.attention(number, call))
            for number, run in enumerate(self.runs)
        ]
        # Maps differ in width, and nobody asked for them.
        return torch.cat([out for out, _ in done]), None

    def show(self, layer: int, hidden: Tensor) -> None:
        """Show each run its rows of a layer's input."""
        for run, rows in zip(self.runs, self.joint.split(hidden), strict=True):
            run.show(layer, rows)

    def finish(self, tower: Any) -> None:
        """End the pass of each run."""
        for run in self.runs:
            run.finish(tower)


def joinable(scorer: Any, given: Mapping[str, Any]) -> bool:
    """Return whether further rows could join this step.

    All its arguments must be understood, and hooks of others would be given all runs at once.
    """
    cache, ids = find_cache(given), given.get("input_ids")
    mask, config = given.get("attention_mask"), getattr(scorer, "config", None)
    known = all(name in _KNOWN or not isinstance(v, Tensor) for name, v in given.items())
    shown = any(given.get(name) or getattr(config, name, False) for name in _SHOWN)
    return (
        isinstance(ids, Tensor)
        and known
        and not shown
        and not hooked(scorer)
        and given.get("use_cache") is not False
        and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2))
        and not (scorer.training and torch.is_grad_enabled())
        and plain(cache, len(ids))
    )


def plain(cache: Any, batch: int) -> bool:
    """Return whether a cache holds all its columns as they are, in memory, for so many rows."""
    return (
        type(cache) is DynamicCache
        and not cache.offloading
        and bool(cache.layers)
        and all(
            type(layer) is DynamicLayer
            and isinstance(layer.keys, Tensor)
            and layer.keys.ndim == 4
            and layer.keys.shape[:3:2] == (batch, cache.get_seq_length())
            for layer in cache.layers
        )
    )


def arguments(
    scorer: nn.Module, joint: JointCache, positions: Sequence[Tensor | None]
) -> dict[str, Any]:
    """The arguments of the model's call for all parts.

    Args:
        scorer: The model.
        joint: Their cache.
        positions: Position ids of each part's block, "B Q" or "3|4 B Q"; None for all of them where
            the model counts by itself.
    """
    main, many = joint.parts[0].given, len(joint.parts)
    found = with_cache(main, joint, scorer) | {"use_cache": True}
    found["input_ids"] = torch.cat([part.given["input_ids"] for part in joint.parts])
    for name in _OF_ROWS:
        if isinstance(value := main.get(name), Tensor):
            found[name] = torch.cat([value, *[torch.zeros_like(value)] * (many - 1)])
    masks = [part.given.get("attention_mask") for part in joint.parts]
    if any(joint.pads) or any(mask is not None for mask in masks):
        found["attention_mask"] = torch.cat(
            [
                _padded(mask, pad, part)
                for mask, pad, part in zip(masks, joint.pads, joint.parts, strict=True)
            ]
        )
    if all(one is not None for one in positions):
        found["position_ids"] = _with_axes([one for one in positions if one is not None])
    return found


def _padded(mask: Tensor | None, pad: int, part: Part) -> Tensor:
    ids = part.given["input_ids"]
    if mask is None:
        mask = ids.new_ones(len(ids), part.cache.get_seq_length() + ids.shape[1])
    return nn.functional.pad(mask.to(ids), (pad, 0))


def _with_axes(positions: Sequence[Tensor]) -> Tensor:
    """Positions of all parts, where some may have axes that are all alike, and some one more."""
    axes = min((len(one) for one in positions if one.ndim == 3), default=None)
    if axes is None:
        return torch.cat(list(positions))
    # The first of four axes counts columns, for masks of packed prompts.
    alike = [one.expand(axes, *one.shape) if one.ndim == 2 else one[-axes:] for one in positions]
    return torch.cat([one.to(alike[0]) for one in alike], 1)


def _rows_of(positions: Tensor, rows: slice) -> Tensor:
    return positions if positions.shape[-2] == 1 else positions[..., rows, :]
