"""A trial of whether edits are exact on a model of unknown family, run on its text tower.

A short text of arbitrary tokens, some of which are called an image, runs through the tower four
times: as it is; with explicit attention maps; and with the image's logits raised, once by the seat
and once on the maps. The first two and the last two must agree, in the prompt and in one step of
decoding.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks.caches import cache_name
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.passes import Columns
from regaze.hooks.precision import product_dtype
from regaze.hooks.reading import Reader
from regaze.hooks.seat import Seat
from regaze.hooks.stack import LayerEntry
from regaze.hooks.tally import Entry

NAME = "regaze_map"
LENGTH, IMAGE = 24, (4, 14)
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference, as a share of the spread of the tower's output; others: 0.05."""

Outputs = tuple[Tensor, Tensor]
_TRIED: MutableMapping[nn.Module, tuple[int, float, Counter[int]]] = weakref.WeakKeyDictionary()
_PASSED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_edits(host: Host) -> None:
    """Check that edits on a model are exact, as far as a short text can show.

    Args:
        host: The model; one that passed is not tried again.

    Raises:
        ValueError: They aren't; the message says what differed and by how much.
    """
    if host.tower in _PASSED:
        return
    apart = replace(host, model=host.tower, family=replace(host.family, image_ids=()))
    ids = _tokens(host.tower)
    with torch.no_grad():
        plain = _try(host, ids)
        with _maps(host, 0.0) as calls:
            mapped = _run(host.tower, ids)
        strange = [site.path for site in host.sites if calls[site.layer] != len(plain)]
        if strange:
            raise ValueError(
                f"{host.model_type} can't be edited exactly: it doesn't call its attention once "
                f"a pass in {', '.join(strange)}"
            )
        _compare(host, "its attention isn't the usual one", plain, mapped)
        with _maps(host, _Boost.size):
            literal = _run(host.tower, ids)
        seat = Seat(apart, Reader(apart, {"image": [IMAGE]}))
        entry: LayerEntry = Entry(_Boost(host))
        seat.push(entry)
        try:
            edited = _run(host.tower, ids)
        finally:
            seat.pop(entry)
    _compare(host, "an edit isn't what the edited map gives", edited, literal)
    if not _off(edited[0], plain[0]) > _limit(plain[0]):
        raise ValueError(f"{host.model_type} can't be edited: raised image logits did nothing")
    _PASSED.add(host.tower)


def _compare(host: Host, what: str, one: Outputs, other: Outputs) -> None:
    for when, a, b in zip(("the prompt", "decoding"), one, other, strict=True):
        if not _off(a, b) <= _limit(a):
            raise ValueError(
                f"{host.model_type} can't be edited exactly: {what}; in {when} the tower's output "
                f"is off by {_off(a, b):.1e} of its spread (allowed: {_limit(a):.0e})"
            )


def _off(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a share of the other's standard deviation."""
    return float((one.float() - other.float()).abs().max() / other.float().std())


def _limit(output: Tensor) -> float:
    return ROUNDING.get(product_dtype(output.dtype, output.device), 0.05)


class _Boost(Edit):
    """Adds a constant to the logits of image columns, in all layers."""

    size = 3.0
    rows = "last"

    def __init__(self, host: Host) -> None:
        super().__init__([site.layer for site in host.sites])

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image, logits + self.size, logits)


def _tokens(tower: Any) -> Tensor:
    """Arbitrary token ids "1 T+1", where the tower's embeddings are."""
    weight = tower.get_input_embeddings().weight
    size = min(len(weight), 1000)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(10, size - 1), size, (1, LENGTH + 1), generator=generator, device="cpu")
    return ids if weight.device.type == "meta" else ids.to(weight.device)


def _try(host: Host, ids: Tensor) -> Outputs:
    try:
        return _run(host.tower, ids)
    except Exception as error:
        raise ValueError(
            f"{host.model_type} can't be checked: its text tower doesn't run on text alone "
            f"({type(error).__name__}: {error})"
        ) from error


def _run(tower: Any, ids: Tensor) -> Outputs:
    """The tower's outputs "1 T E" and "1 1 E": a prompt, and one more token."""
    cache = DynamicCache(config=tower.config)
    held: dict[str, Any] = {cache_name(tower): cache, "use_cache": True}
    prompt = tower(input_ids=ids[:, :LENGTH], **held)
    step = tower(input_ids=ids[:, LENGTH:], **held)
    return prompt.last_hidden_state, step.last_hidden_state


@contextmanager
def _maps(host: Host, boost: float) -> Iterator[Counter[int]]:
    """Let the tower attend by explicit maps, the image's logits raised.

    Yields:
        Number of times that each layer attended.
    """
    calls: Counter[int] = Counter()
    for site in host.sites:
        _TRIED[host.attention(site.layer)] = site.layer, boost, calls
    modules: list[Any] = [host.tower, *(host.attention(site.layer) for site in host.sites)]
    before = [(m.config, m.config._attn_implementation_internal) for m in modules]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield calls
    finally:
        for config, name in reversed(before):
            config._attn_implementation_internal = name
        for site in host.sites:
            _TRIED.pop(host.attention(site.layer), None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as it reads, its last row edited."""
    layer, boost, calls = _TRIED[module]
    calls[layer] += 1
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, 1).float() for x in (key, value))
    logits = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    # Where a window has left columns behind, the first ones are gone.
    gone = LENGTH + (query.shape[2] == 1) - key.shape[2]
    image = slice(max(IMAGE[0] - gone, 0), max(IMAGE[1] - gone, 0))
    logits[:, :, -1, image] += boost
    weights = (logits + mask[..., : key.shape[2]].float()).softmax(-1)
    return (weights @ value).transpose(1, 2).to(query.dtype), weights


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
