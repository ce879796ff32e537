"""What is known of a prompt, carried by its cache.

A `Prompt` is never changed: each pass takes the one it finds on its cache and leaves a new one. So
prompts may be decoded in turns or in threads, and a copy of a cache, deep or shallow, goes on from
where it was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.cache_rows import CacheRows
from regaze.hooks.edits import Edit
from regaze.hooks.passes import PromptMasks
from regaze.hooks.tally import Entry
from regaze.hooks.tokens import TokenMap

Works = Mapping[Entry[Edit, int], Edit]
_ATTRIBUTE = "_regaze_prompts"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt and the text generated after it, as far as the last pass brought it.

    Attributes:
        tokens: What its columns hold.
        ids: "B P" token ids that were read, -1 for generated text.
        real: "B P" bool: which of them are no padding.
        masks: Column masks and row plans that its decode steps share.
        index: Passes since it began.
        parts: Columns at which a part of the prompt ended that goes on.
        rows: What its cache's rows are known by.
        compared: "B C" token ids of the prompt that was compared with the one without images.
        works: The state of each edit.
        asked: Calls of each entry at each layer since the prompt began.
    """

    tokens: TokenMap
    ids: Tensor
    real: Tensor
    masks: PromptMasks
    index: int
    parts: frozenset[int] = frozenset()
    rows: CacheRows | None = None
    compared: Tensor | None = None
    works: Works = field(default_factory=dict)
    asked: Counter[tuple[Entry[Edit, int], int]] = field(default_factory=Counter)


class _Marks:
    """The prompts on one cache, one for each seat; not written to files, and copied as they are."""

    def __init__(self, prompts: Mapping[object, Prompt]) -> None:
        self.prompts = prompts

    def __deepcopy__(self, memo: object) -> _Marks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Marks, ({},)


def prompt_on(cache: Any, seat: object) -> Prompt | None:
    """The prompt that a seat left on a cache."""
    marks = getattr(cache, _ATTRIBUTE, None)
    return None if marks is None else marks.prompts.get(seat)


def put_prompt(cache: Any, seat: object, prompt: Prompt | None) -> None:
    """Leave a prompt on a cache, or take it off."""
    marks = getattr(cache, _ATTRIBUTE, None)
    if marks is None and prompt is None:
        return
    rest = {k: v for k, v in (marks.prompts if marks else {}).items() if k is not seat}
    if prompt is not None:
        rest[seat] = prompt
    # A new object: a shallow copy of the cache holds the old one.
    setattr(cache, _ATTRIBUTE, _Marks(rest))


def empty(batch: int) -> tuple[Tensor, Tensor]:
    """Token ids and padding of a prompt of which nothing was read."""
    return torch.empty(batch, 0, dtype=torch.long), torch.empty(batch, 0, dtype=torch.bool)
