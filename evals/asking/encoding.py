"""A batch of questions as tensors: images read once or with each question, what can't be asked."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.evals.asking import sharing
from regaze.evals.asking.batching import out_of_memory
from regaze.evals.asking.prompts import Prompter, Question
from regaze.evals.asking.sharing import CannotShareError, Shared

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One prompt of a batch: a question, or a question with one of its choices.

    Attributes:
        place: The question's place in the batch.
        question: The question.
        text: In the chat template.
        answer: Token ids of the choice.
    """

    place: int
    question: Question
    text: str
    answer: list[int] | None


@dataclass(frozen=True)
class Encoded:
    """Rows that go through the model together.

    Attributes:
        rows: The prompts.
        inputs: The model's inputs, on the CPU; with ``shared`` those of the prefixes.
        shared: The rests of the prompts, behind their prefixes; None if they share none.
        lengths: Prompt tokens of each row.
        images: Image columns among them.
    """

    rows: Sequence[Row]
    inputs: Mapping[str, Tensor]
    shared: Shared | None
    lengths: Sequence[int]
    images: Sequence[int]


@dataclass(frozen=True)
class Refused:
    """The reason why a question can't be asked."""

    reason: str


class Encoder:
    """Makes `Encoded` rows of questions.

    Args:
        prompter: The model's.
        image_ids: Token ids that stand for image columns.
        context: Columns that the model reads, the first new token included; None: not known.
        pad: Token id to pad with.
    """

    def __init__(
        self, prompter: Prompter, image_ids: Collection[int], context: int | None, pad: int
    ) -> None:
        self._prompter = prompter
        self._image_ids = frozenset(image_ids)
        self._context = context
        self._pad = pad

    def rows(self, place: int, question: Question) -> list[Row]:
        """The prompts of one question: one, or one per choice."""
        text = self._prompter.text(question.prompt, images=len(question.images))
        if not question.choices:
            return [Row(place, question, text, None)]
        ids = self._prompter.answer_ids
        return [Row(place, question, text, ids(question, text, c)) for c in question.choices]

    def encode(self, rows: Sequence[Row], share: bool) -> tuple[list[Encoded], dict[int, Refused]]:
        """Tensors of all rows, and the questions that can't be asked, by their place.

        Args:
            rows: Prompts.
            share: True if prompts about one image share their beginning.
        """
        refused: dict[int, Refused] = {}
        groups = _groups(rows, share)
        encoded = self._encode(groups, share and len(groups) < len(rows), refused) if rows else []
        return encoded, refused

    def _encode(
        self, groups: Sequence[Sequence[Row]], share: bool, refused: dict[int, Refused]
    ) -> list[Encoded]:
        """Groups of rows, each with its own image."""
        rows = [row for group in groups for row in group]
        firsts = [group[0] for group in groups] if share else rows
        try:
            images = [row.question.images for row in firsts]
            made = self._prompter.inputs([row.text for row in firsts], images)
        except Exception as error:  # Processors raise anything at all.
            if out_of_memory(error):
                raise
            if len(groups) > 1:
                return [e for group in groups for e in self._encode([group], share, refused)]
            if share:
                return [e for row in rows for e in self._encode([[row]], False, refused)]
            said = " ".join(str(error).split()) or "no reason given"
            why = f"the model's processor can't take this prompt: {type(error).__name__}: {said}"
            refused[rows[0].place] = Refused(why)
            return []
        shared = None
        ids, mask = made["input_ids"], made["attention_mask"]
        if share:
            try:
                shared = self._share(groups, made)
            except CannotShareError as error:
                _log.warning("%d questions are asked apart: %s", len(rows), error)
                return self._encode([[row] for row in rows], False, refused)
            ids, mask, made = shared.ids, shared.mask, dict(shared.prefix)
        lengths = mask.sum(1).tolist()
        if self._context is not None and max(lengths) >= self._context:
            for row, length in zip(rows, lengths, strict=True):
                if length >= self._context:
                    why = f"the prompt has {length} tokens, the model reads {self._context}"
                    refused[row.place] = Refused(why)
            rest = [[row] for row in rows if row.place not in refused]
            return self._encode(rest, False, refused) if rest else []
        n_images = torch.isin(ids, torch.tensor(sorted(self._image_ids))).sum(1).tolist()
        return [Encoded(rows, made, shared, lengths, n_images)]

    def _share(self, groups: Sequence[Sequence[Row]], firsts: Mapping[str, Tensor]) -> Shared:
        ids, mask = firsts["input_ids"], firsts["attention_mask"].bool()
        real = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
        spliced = [
            sharing.splice(self._prompter, [row.text for row in group], first, self._image_ids)
            for group, first in zip(groups, real, strict=True)
        ]
        return sharing.arrange(firsts, spliced, self._pad)


def _groups(rows: Sequence[Row], share: bool) -> list[list[Row]]:
    """Rows in groups that show the same image."""
    groups: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        alone = not share or row.question.image is None
        groups.setdefault((number, None) if alone else (None, row.question.key), []).append(row)
    return list(groups.values())
