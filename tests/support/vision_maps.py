"""Vision towers on explicit attention maps, and an edit to try on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks import Edit
from regaze.hooks.passes import Columns, Rows
from regaze.hooks.pictures import Eye

NAME = "vision_maps"

Change = Callable[[int, Tensor, int], Tensor]
"""Layer, logits "B H Q K" and the picture's column of row 0, to other logits."""
_CHANGES: list[tuple[dict[Any, int], list[int], Change, dict[int, list[Tensor]]]] = []


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention as it reads, each picture of a packed sequence on its own."""
    layers, sizes, change, maps = _CHANGES[-1]
    layer = layers[vars(module).get("_real", module)]
    z = query @ key.mT * kwargs["scaling"]
    z = z if attention_mask is None else z + attention_mask
    done = sum(one.shape[2] for one in maps[layer])
    if query.shape[0] > 1 or not sizes:
        z = change(layer, z, 0)
    else:
        start = done
        for number, size in enumerate(sizes):
            first = sum(sizes[:number])
            a, b = max(first, start), min(first + size, start + z.shape[2])
            if a < b:
                cut = slice(a - start, b - start)
                z = z.clone()
                z[:, :, cut, cut] = change(layer, z[:, :, cut, cut], a - first)
    weights = z.softmax(-1)
    maps[layer].append(weights)
    return (weights @ value).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def explicitly(
    seen: Eye, lengths: list[int], change: Change = lambda layer, z, first: z
) -> Iterator[dict[int, list[Tensor]]]:
    """Let a vision tower attend by explicit maps, changed.

    Args:
        seen: The tower.
        lengths: Patches of each picture in a packed sequence; empty if it isn't packed.
        change: A change of a picture's logits.

    Yields:
        The map of each call, by layer.
    """
    modules = {seen.tower.get_submodule(path): layer for layer, path in seen.paths.items()}
    maps: dict[int, list[Tensor]] = {layer: [] for layer in seen.paths}
    config: Any = seen.tower.config
    before = config._attn_implementation_internal
    _CHANGES.append((modules, lengths, change, maps))
    config._attn_implementation_internal = NAME
    try:
        yield maps
    finally:
        config._attn_implementation_internal = before
        _CHANGES.pop()


def raised(layer: int, z: Tensor, first: int, before: int = 0) -> Tensor:
    """Every third patch is preferred, in layer 1 less so."""
    columns = torch.arange(first, first + z.shape[-1])
    return torch.where((columns % 3 == 0) & (columns >= before), z + 2.0 - layer, z)


class Raise(Edit):
    """`raised`, as an edit."""

    tower: Literal["text", "vision"] = "vision"

    def __init__(self, rows: Rows | None, layers: Sequence[int] = (0, 1)) -> None:
        super().__init__(layers)
        self.rows = rows

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        new = raised(layer, logits, columns.offset)
        return torch.where(columns.image, new, logits)


@dataclass(frozen=True)
class Spec:
    """Any edit, as something to attach."""

    edit: Edit
    label: str = "a test's"
    acts_on: str = "vision-language models"

    def resolve(self, host: Any) -> Spec:
        return self

    def bind(self, host: Any) -> Edit:
        return self.edit


def literal(rows: Rows, class_token: bool) -> Change:
    """The same as `Raise`, on whole maps."""

    def change(layer: int, z: Tensor, first: int) -> Tensor:
        new = raised(layer, z, first, int(class_token))
        if rows == "all":
            return new
        picked = [0] if rows == "class" else [int(row) for row in rows]
        here = torch.isin(torch.arange(first, first + z.shape[2]), torch.tensor(picked))
        return torch.where(here[:, None], new, z)

    return change


def of_picture(maps: list[Tensor], lengths: list[int], number: int) -> Tensor:
    """A picture's whole map "H N N", from those of calls."""
    if maps[0].shape[0] > 1 or len(lengths) == 1 < len(maps[0]):
        return maps[0][number]
    whole = torch.zeros(maps[0].shape[1], sum(lengths), sum(lengths))
    start = 0
    for one in maps:
        end = start + one.shape[2]
        whole[:, start:end, start:end] = one[0]
        start = end
    first = sum(lengths[:number])
    cut = slice(first, first + lengths[number])
    return whole[:, cut, cut]
