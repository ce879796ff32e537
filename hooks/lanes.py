"""The cache of a second run of the model, and what keeps it in step with the main run's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lane:
    """A branch as far as its last pass brought it.

    Attributes:
        name: Name of the model's argument for its cache.
        cache: Cache of the branch; holds a column more for each of the main run's.
        mask: "B K" which columns are no padding.
        ahead: Number of columns of the branch less the main run's.
        columns: Columns of its prompt.
        last: Position of the prompt's last column, "... B"; None where the model counts by itself.
        padded: True if some columns are padding.
        joint: The cache that it shared with the main run in its last pass, if it did.
    """

    name: str
    cache: Any
    mask: Tensor
    ahead: int
    columns: int
    last: Tensor | None
    padded: bool
    joint: Any = None

    def select(self, rows: Tensor) -> Lane:
        """Select some rows, in their order, in the cache too."""
        self.cache.batch_select_indices(rows)
        last = self.last if self.last is None else self.last[..., rows.to(self.last.device)]
        mask = self.mask[rows.to(self.mask.device)]
        return replace(self, mask=mask, last=last, joint=None)

    def copy(self, memo: dict[int, Any]) -> Lane:
        """A lane with a cache of its own."""
        return replace(self, cache=copy.deepcopy(self.cache, memo), joint=None)

    def next(self, ids: Tensor, real: Tensor | None, past: int) -> tuple[Lane, dict[str, Any]]:
        """The lane with a block of new tokens, and the arguments of the pass that reads them.

        Args:
            ids: "B Q" token ids.
            real: "B Q" which of them are no padding; None: all.
            past: Columns before them in the main run.

        Raises:
            RuntimeError: The main run's cache holds columns that the lane never saw.
        """
        start, known = past + self.ahead, int(self.cache.get_seq_length())
        if known > start:
            self.cache.crop(start - known)
        elif known < start:
            raise RuntimeError(
                f"the prompt's cache holds {start - known} columns that its second run never saw; "
                "attach first, then prefill, and feed token ids"
            )
        padded = self.padded or not (real is None or bool(real.all()))
        real = torch.ones_like(ids) if real is None else real
        mask = torch.cat([self.mask[:, :start], real.to(self.mask)], 1)
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask if padded else None,
            self.name: self.cache,
            "use_cache": True,
        }
        if self.last is not None:
            new = torch.arange(ids.shape[1], device=self.last.device) + start - self.columns + 1
            given["position_ids"] = self.last[..., None] + new
        return replace(self, mask=mask, padded=padded, joint=None), given

    def positions(self, given: Mapping[str, Any]) -> Tensor:
        """Position ids of the block that these arguments are of, "1 Q" or "... B Q"."""
        if self.last is not None:
            found: Tensor = given["position_ids"]
            return found
        ids, past = given["input_ids"], int(self.cache.get_seq_length())
        return torch.arange(past, past + ids.shape[1], device=ids.device).expand_as(ids)
