"""Prompts read once up to the end of their image."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.evals.analysis.asked import Subject
from regaze.evals.asking import sharing
from regaze.hooks.attach import Attachment


@dataclass(frozen=True)
class Beginning:
    """A prompt read up to the end of its image.

    Attributes:
        cache: Keys and values.
        ids: "1 T" the whole prompt.
        prefix: The inputs that were read.
        length: Columns that were read.
        lag: See `regaze.evals.asking.sharing.deltas`.
    """

    cache: Any
    ids: Tensor
    prefix: dict[str, Any]
    length: int
    lag: Tensor | None

    @classmethod
    def read(cls, subject: Subject, attached: Attachment, inputs: dict[str, Any]) -> Beginning:
        """Read it, of the inputs of one unpadded prompt."""
        ids = inputs["input_ids"]
        image = torch.isin(ids[0].cpu(), torch.tensor(sorted(subject.host.image_ids)))
        length = int(image.nonzero().max()) + 1
        prefix = {
            name: value[:, :length] if value.shape[:2] == ids.shape else value
            for name, value in inputs.items()
        }
        with attached.partial_prompt():
            cache = sharing.read(subject.model, prefix)
        return cls(cache, ids, prefix, length, sharing.deltas(subject.model))

    def continued(self, model: Any, count: int) -> dict[str, Any]:
        """Arguments for ``generate`` to read the rest in so many rows."""
        ids = self.ids.repeat(count, 1)
        image_of = torch.zeros(count, dtype=torch.long)
        shared = sharing.Shared(self.prefix, ids, torch.ones_like(ids), image_of)
        return sharing.proceed(model, copy.deepcopy(self.cache), shared, 1, self.lag)
