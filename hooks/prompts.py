"""The state of a prompt, carried by its cache.

A `Prompt` is never changed: each pass takes the one it finds on its cache and leaves a new one. So
prompts may be decoded in turns or in threads, and a copy of a cache, deep or shallow, goes on from
where it was made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.cache_rows import CacheRows
from regaze.hooks.edits import Edit
from regaze.hooks.lanes import Lane
from regaze.hooks.passes import PromptMasks
from regaze.hooks.tally import Entry
from regaze.hooks.tokens import TokenMap

Works = Mapping[Entry[Edit, int], Edit]
Asked = defaultdict[tuple[Entry[Edit, int], int], int]
"""Number of times that each entry was asked at each layer."""
Lanes = Mapping[tuple[Entry[Edit, int], int], Lane]
"""The lane of each branch, by entry and number."""
_ATTRIBUTE = "_regaze_prompts"
# Methods of a cache that give its batch other rows.
_MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt and the text generated after it, as far as the last pass brought it.

    Attributes:
        tokens: Contents of the prompt's columns.
        ids: "B P" token ids that were read, -1 for generated text.
        real: "B P" bool: which of them are no padding.
        masks: Column masks and row plans that its decode steps share.
        index: Passes since it began.
        parts: Columns at which a part of the prompt ended that goes on.
        rows: Keys by which the rows of its cache are known.
        compared: "B C" token ids of the prompt that was compared with the one without images.
        works: The state of each edit.
        asked: Calls of each entry at each layer since the prompt began.
        lanes: The second runs of edits with branches.
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
    asked: Asked = field(default_factory=lambda: defaultdict(int))
    lanes: Lanes = field(default_factory=dict)

    def having(self, **fields: Any) -> Prompt:
        """The prompt with some attributes replaced; done for every token, so it has to be quick."""
        twin = object.__new__(Prompt)
        vars(twin).update(vars(self))
        vars(twin).update(fields)
        return twin

    def select(self, rows: Tensor) -> Prompt:
        """The prompts of some batch rows, "B'" on the CPU, in their order; rows may repeat."""
        tokens = self.tokens.select(rows)
        kinds, images = self.tokens.kinds, self.tokens.images
        same = len(kinds) == len(tokens.kinds) and torch.equal(kinds, tokens.kinds)
        # Beams of one prompt change places at every step.
        same = same and torch.equal(images, tokens.images)
        return replace(
            self,
            tokens=tokens,
            ids=self.ids[rows],
            real=self.real[rows],
            rows=None if self.rows is None else self.rows.select(rows),
            compared=None if self.compared is None else self.compared[rows],
            masks=self.masks if same else PromptMasks(tokens),
            works={entry: edit.select(rows) for entry, edit in self.works.items()},
            lanes={key: lane.select(rows) for key, lane in self.lanes.items()},
        )

    def copy(self, memo: dict[int, Any]) -> Prompt:
        """The prompt for a copy of its cache."""
        if not self.lanes:
            return self
        return replace(self, lanes={key: lane.copy(memo) for key, lane in self.lanes.items()})


class _Marks:
    """The prompts on one cache, one for each seat; not written to files, and copied as they are."""

    def select(self, rows: Tensor) -> _Marks:
        return _Marks({seat: prompt.select(rows) for seat, prompt in self.prompts.items()})

    def __init__(self, prompts: Mapping[object, Prompt]) -> None:
        self.prompts = prompts

    def __deepcopy__(self, memo: dict[int, Any]) -> _Marks:
        return _Marks({seat: prompt.copy(memo) for seat, prompt in self.prompts.items()})

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
    for name in _MOVES if prompt is not None else ():
        if hasattr(cache, name) and name not in vars(cache):
            setattr(cache, name, _Move(cache, name))


class _Move:
    """A method of a cache that moves its batch rows, and the prompts on it with them."""

    def __init__(self, cache: Any, name: str) -> None:
        self._cache, self._name = cache, name

    def __call__(self, rows: Any) -> None:
        marks = getattr(self._cache, _ATTRIBUTE, None)
        getattr(type(self._cache), self._name)(self._cache, rows)
        if marks is None or not marks.prompts:
            return
        if self._name == "batch_repeat_interleave":
            count = next(iter(marks.prompts.values())).tokens.batch
            rows = torch.arange(count, device="cpu").repeat_interleave(int(rows))
        rows = rows.cpu()
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows.long()
        setattr(self._cache, _ATTRIBUTE, marks.select(index))


def empty(batch: int) -> tuple[Tensor, Tensor]:
    """Token ids and padding of a prompt of which nothing was read."""
    ids = torch.empty(batch, 0, dtype=torch.long, device="cpu")
    return ids, torch.empty_like(ids, dtype=torch.bool)
