"""Read an image once for all questions about it.

Prompts about one image begin alike: system text, image, the first words of the question. By
causality, keys and values of that beginning don't depend on what follows, so they are computed once
per image, for several images at a time, repeated for each question, and the rests of the questions
are read and answered as one batch. That is what separate runs compute, only not as often.

A row of the batch is ``padding, beginning, padding, rest``: the first padding levels the images'
beginnings, the second the rests. Masked columns don't count as positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.prompts import Prompter, common
from regaze.hooks.caches import cache_name, find_cache

Partial = Callable[[], AbstractContextManager[None]]


class CannotShareError(Exception):
    """These prompts can't share their beginning; the message says why."""


@dataclass(frozen=True)
class Shared:
    """Prompts about G images, N in all.

    Attributes:
        prefix: Inputs "G P" of the beginnings, with the images.
        ids: "N P+S" whole prompts.
        mask: "N P+S", 1 where ``ids`` is no padding.
        image_of: "N" each prompt's image, by its place.
    """

    prefix: Mapping[str, Tensor]
    ids: Tensor
    mask: Tensor
    image_of: Tensor


def splice(
    prompter: Prompter, texts: Sequence[str], first: Sequence[int], image_ids: Collection[int]
) -> list[list[int]]:
    """Token ids of several prompts about one image, from those of the first.

    Args:
        prompter: The model's.
        texts: The prompts in the chat template.
        first: Token ids that the processor made of the first one and the image.
        image_ids: Token ids that stand for image columns.

    Raises:
        CannotShareError: The processor does more than put the image where its placeholder is, or a
            question's own words hold a placeholder.
    """
    rows = [list(first)]
    for text in texts[1:]:
        old, new = prompter.tail(texts[0], text)
        if list(first[len(first) - len(old) :]) != old:
            raise CannotShareError("its processor changes the text after the image")
        if not set(image_ids).isdisjoint(new):
            raise CannotShareError("a question's own words hold the placeholder of an image")
        rows.append([*first[: len(first) - len(old)], *new])
    return rows


def arrange(
    firsts: Mapping[str, Tensor], groups: Sequence[Sequence[list[int]]], pad: int
) -> Shared:
    """Lay out prompts so that the beginning of each group is read once.

    Args:
        firsts: Left-padded inputs "G T" of each group's first prompt, with the images.
        groups: Token ids of each group's prompts, the first one first.
        pad: Token id to pad with.
    """
    # At least one token stays, as the row that predicts the answer.
    begin = [min(common(rows), *(len(row) - 1 for row in rows)) for rows in groups]
    most = max(begin)
    total = firsts["input_ids"].shape[1]
    prefix = {}
    for name, tensor in firsts.items():
        if tensor.shape[:2] == (len(groups), total):  # one value per token
            cut = [
                tensor[g, total - len(rows[0]) : total - len(rows[0]) + b]
                for g, (rows, b) in enumerate(zip(groups, begin, strict=True))
            ]
            fill = pad if name == "input_ids" else 0
            tensor = torch.stack([_pad_left(row, most, fill) for row in cut])
        prefix[name] = tensor
    rests = [row[b:] for rows, b in zip(groups, begin, strict=True) for row in rows]
    longest = max(map(len, rests))
    rest = torch.stack([_pad_left(torch.tensor(row), longest, pad) for row in rests])
    seen = torch.stack(
        [_pad_left(torch.ones(len(row), dtype=torch.long), longest, 0) for row in rests]
    )
    image_of = torch.tensor([g for g, rows in enumerate(groups) for _ in rows])
    ids = torch.cat([prefix["input_ids"][image_of], rest], 1)
    mask = torch.cat([prefix["attention_mask"][image_of], seen], 1)
    return Shared(prefix, ids, mask, image_of)


def begin(
    model: Any, prefix: Mapping[str, Any], shared: Shared, beams: int, partial: Partial
) -> dict[str, Any]:
    """Read the beginnings; return arguments of ``generate`` to read the rests and answer.

    Args:
        model: An image-text-to-text model.
        prefix: The prefix of ``shared``, on the model's device.
        shared: Prompts.
        beams: Rows that ``generate`` will make of each prompt.
        partial: `regaze.hooks.Attachment.partial_prompt`, where interventions are attached.

    Raises:
        CannotShareError: The model's cache isn't one that can be continued by columns.
    """
    with partial():
        cache = read(model, prefix)
    return proceed(model, cache, shared, beams, deltas(model))


def deltas(model: Any) -> Tensor | None:
    """The lag of positions behind columns after the pass of a prompt, "G 1"; None: there is none.

    Where an image takes fewer positions than columns (M-RoPE), the model keeps the difference.
    """
    kept = (getattr(module, "rope_deltas", None) for module in model.modules())
    return next((one for one in kept if one is not None), None)


def proceed(
    model: Any, cache: Any, shared: Shared, beams: int, lag: Tensor | None
) -> dict[str, Any]:
    """Arguments of ``generate`` to read the rests behind beginnings that were read.

    Args:
        model: An image-text-to-text model.
        cache: Keys and values of the beginnings; used up.
        shared: Prompts.
        beams: Rows that ``generate`` will make of each prompt.
        lag: The value of `deltas` after the beginnings.

    Raises:
        CannotShareError: The cache isn't one that can be continued by columns.
    """
    check_cache(cache)
    # Indices on the CPU: the cache's layers may be on several devices.
    cache.batch_select_indices(shared.image_of.repeat_interleave(beams))
    ids, mask = shared.ids.to(model.device), shared.mask.to(model.device)
    positions = mask.cumsum(1) - 1
    if lag is not None:
        positions = positions + lag.to(positions)[shared.image_of]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions.masked_fill(mask == 0, 0),
        cache_name(model): cache,
    }


def read(model: Any, inputs: Mapping[str, Tensor]) -> Any:
    """Read prompts and return the cache of their keys and values."""
    # One new token is one forward pass, with positions as the family numbers them.
    config = Decoding().config(model, 1)
    config.return_dict_in_generate = True
    return find_cache(model.generate(**inputs, generation_config=config))


def check_cache(cache: Any) -> None:
    """Check that a cache holds one key and value per column, so that it can be continued.

    Raises:
        CannotShareError: It doesn't; padding between prompts would count as columns of a window.
    """
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())} - {
        DynamicLayer.__name__
    }
    if kinds or not hasattr(cache, "layers"):
        what = ", ".join(sorted(kinds)) or type(cache).__name__
        raise CannotShareError(f"its cache has layers that don't keep every column ({what})")


def check_causal(model: Any, inputs: Mapping[str, Tensor]) -> None:
    """Check that a prompt's beginning doesn't depend on its end, bit for bit.

    Args:
        model: An image-text-to-text model without interventions.
        inputs: One prompt.

    Raises:
        CannotShareError: It does, as in models that read the whole prompt in both directions.
    """
    ids = inputs["input_ids"]
    text = ids[0].tolist()
    # Another last token: all shapes stay the same, so that equal means equal bits.
    other = ids.clone()
    other[:, -1] = next(token for token in reversed(text) if token != text[-1])
    caches = [read(model, {**inputs, "input_ids": changed}) for changed in (ids, other)]
    check_cache(caches[0])
    for one, two in zip(caches[0].layers, caches[1].layers, strict=True):
        if not torch.equal(one.keys[:, :, :-1], two.keys[:, :, :-1]):
            raise CannotShareError(
                "it reads prompts in both directions, so what it makes of the image depends on "
                "the question"
            )


def _pad_left(row: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(row, (length - len(row), 0), value=value)
