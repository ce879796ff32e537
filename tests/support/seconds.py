"""Second runs and edits of scores made up for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regaze.hooks import Branch, Edit
from regaze.hooks.passes import Pass


class Seconds(Edit):
    """Edits scores as it is told."""

    def __init__(self, *branches: Branch, ban: int | None = None) -> None:
        super().__init__(())
        self.branches, self.ban = branches, ban

    def edit_scores(self, scores: Tensor, pass_: Pass) -> Tensor:
        if self.ban is None:
            return scores
        banned = torch.arange(scores.shape[-1]) == self.ban
        return scores.masked_fill(banned, -torch.inf)


class Told:
    """A method made of an edit."""

    label, acts_on = "told", "vision-language models"

    def __init__(self, edit: Edit) -> None:
        self.edit = edit

    def resolve(self, host: Any) -> Told:
        return self

    def bind(self, host: Any) -> Edit:
        return self.edit


def twice(scores: Tensor, other: Tensor, pass_: Pass | None = None) -> Tensor:
    """Scores moved away from others by as much as they differ."""
    return 2 * scores - other
