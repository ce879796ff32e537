"""Second runs and edits of scores made up for tests, and second runs made anew for every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tiny import Tiny
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from regaze.hooks import Branch, Edit, attach
from regaze.hooks.passes import Pass

Second = Callable[[Tensor], Tensor]
"""Scores "B V" of a second run, from all token ids so far."""


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


class Contrast(LogitsProcessor):
    """Combines with a second run that is made anew for every token."""

    def __init__(self, second: Second, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.second, self.combine = second, combine

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.combine(scores, self.second(input_ids)).log_softmax(-1)


def say(model: Tiny, inputs: Mapping[str, Any], spec: Any, second: Any = None, **more: Any) -> Any:
    settings = {"max_new_tokens": 7, "do_sample": False, "logits_processor": second, **more}
    torch.manual_seed(0)
    with attach(model.model, spec, processor=model.processor) as run:
        ids = model.model.generate(**inputs, **settings)
    assert run.report().fired
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def reference(model: Tiny, second: Second, combine: Any) -> Any:
    return LogitsProcessorList([Contrast(second, combine)])
