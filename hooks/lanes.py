"""The cache of a second run of the model, and what keeps it in step with the main run's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lane:
    """A branch as far as its last pass brought it.

    Attributes:
        cache: Its cache; holds a column more for each of the main run's.
        mask: "B K" which columns are no padding.
        ahead: Its columns less the main run's.
        columns: Columns of its prompt.
        last: Position of the prompt's last column, "... B"; None where the model counts by itself.
    """

    cache: Any
    mask: Tensor
    ahead: int
    columns: int
    last: Tensor | None

    def select(self, rows: Tensor) -> Lane:
        """Take some rows, in their order, in the cache too."""
        self.cache.batch_select_indices(rows)
        last = self.last if self.last is None else self.last[..., rows.to(self.last.device)]
        return replace(self, mask=self.mask[rows.to(self.mask.device)], last=last)

    def copy(self, memo: dict[int, Any]) -> Lane:
        """A lane with a cache of its own."""
        return replace(self, cache=copy.deepcopy(self.cache, memo))

    def next(self, ids: Tensor, real: Tensor, past: int) -> tuple[Lane, dict[str, Any]]:
        """The lane with a block of new tokens, and the arguments of the pass that reads them.

        Args:
            ids: "B Q" token ids.
            real: "B Q" which of them are no padding.
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
        mask = torch.cat([self.mask[:, :start], real.to(self.mask)], 1)
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.last is not None:
            new = torch.arange(ids.shape[1], device=self.last.device) + start - self.columns + 1
            given["position_ids"] = self.last[..., None] + new
        return replace(self, mask=mask), given
