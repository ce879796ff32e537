"""GIFT's reading: where the gaze moved while the question was read.

What is computed, and after which source, is said in `regaze.interventions.lvlm.gift`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from regaze.hooks.edits import Edit
from regaze.hooks.handover import Handover
from regaze.hooks.passes import Columns, GrowingMask, Pass, RowPlan
from regaze.hooks.tokens import Kind, TokenMap
from regaze.interventions.lvlm.content_words import content_of, question_columns


def shifts(rows: Tensor) -> Tensor:
    """The rises of weights from each row to the next: "... R K" to "... R-1 K"."""
    return (rows[..., 1:, :] - rows[..., :-1, :]).clamp(min=0)


def keep_heads(shift: Tensor) -> Tensor:
    """The half of the heads where shifts sum highest, best first: "H N J" to "H/2 N J"."""
    order = shift.sum((-1, -2)).topk(shift.shape[0] // 2).indices
    return shift[order]


def normalise(saliency: Tensor) -> Tensor:
    """Saliency "J", clamped to mean +- 3 std and scaled to [0, 1]; zeros if it is constant."""
    if saliency.numel() < 2:
        return torch.zeros_like(saliency)
    mean, std = saliency.mean(), saliency.std()
    saliency = saliency.clamp(mean - 3 * std, mean + 3 * std)
    low, spread = saliency.min(), saliency.max() - saliency.min()
    return (saliency - low) / spread if bool(spread > 0) else torch.zeros_like(saliency)


@dataclass(frozen=True)
class Gaze:
    """The gaze read off a prompt: saliency "B 1 1 K" and question "B 1 1 K"."""

    saliency: GrowingMask
    question: GrowingMask


class ReadGaze(Edit):
    """Reads where the gaze moved.

    Args:
        layers: Layers to read.
        found: Takes what was found.
        processor: The model's processor.
        words: Tagger of content words, as in `regaze.interventions.lvlm.gift.GIFT`.
        repeats: Places that count of a repeated word, as in GIFT.
        trim: Numbers of template tokens, as in GIFT.
    """

    rows = "question"
    reads_only = True

    def __init__(
        self,
        layers: Sequence[int],
        found: Handover[Gaze | None],
        processor: Any,
        words: Literal["auto", "spacy", "nltk", "all"],
        repeats: Literal["all", "last"],
        trim: tuple[int, int],
    ) -> None:
        super().__init__(layers)
        self.found, self.processor = found, processor
        self.words, self.repeats, self.trim = words, repeats, trim
        self.seen: list[tuple[int, Tensor, Tensor]] = []
        self.ids: list[Tensor] = []
        self.pass_: Any = None

    def begin(self, pass_: Pass) -> None:
        """Take up a block, or a new prompt."""
        if pass_.prompt_start:
            self.seen, self.ids = [], []
        self.pass_ = None
        if self.layers and not pass_.decodes and bool(pass_.tokens.has_image.any()):
            self.pass_ = pass_
            self.found.put(None)
            self._go_on(pass_)

    def _go_on(self, pass_: Pass) -> None:
        """Take up a block: what was rolled back is forgotten, what was generated isn't known."""
        past, ids = pass_.past, pass_.inputs.get("input_ids")
        shape = pass_.batch, pass_.length
        block = ids.cpu() if isinstance(ids, Tensor) and ids.shape == shape else None
        before = torch.cat(
            [torch.empty(pass_.batch, 0, dtype=torch.long, device="cpu"), *self.ids], 1
        )[:, :past]
        before = pad(before, (0, past - before.shape[1]), value=-1)
        self.ids = [before, torch.full(shape, -1, device="cpu") if block is None else block]
        self.seen = [(n, at.masked_fill(at >= past, -1), w) for n, at, w in self.seen]

    def select(self, rows: Tensor) -> ReadGaze:
        """Take some samples, in their order."""
        twin = copy.copy(self)
        twin.seen = [(n, c[rows], w[rows.to(w.device)]) for n, c, w in self.seen]
        twin.ids = [ids[rows] for ids in self.ids]
        return twin

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        """Keep the question's rows; at the prompt's end hand the gaze over."""
        if self.pass_ is None:
            return
        acts = plan.acts["question"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        at = torch.where(valid, plan.rows + self.pass_.past, -1).cpu()
        weights = logits.softmax(-1).float() * columns.image
        self.seen.append((layer, at, pad(weights, (columns.offset, 0))))
        if self.pass_.prompt_end and layer == max(self.layers):
            self.found.put(self._gaze(self.pass_.tokens))

    def _gaze(self, tokens: TokenMap) -> Gaze:
        image, text = tokens.is_kind(Kind.IMAGE), tokens.is_kind(Kind.QUESTION)
        saliency = torch.zeros(tokens.batch, 1, 1, tokens.length, dtype=torch.float32, device="cpu")
        question = torch.zeros(tokens.batch, 1, 1, tokens.length, dtype=torch.bool, device="cpu")
        ids = torch.cat(self.ids, 1)
        for row in range(tokens.batch):
            if not bool(image[row].any()):
                continue
            columns = question_columns(text[row], image[row], self.trim)
            question[row, ..., columns] = True
            said = [int(ids[row, c]) for c in columns]
            if min(said, default=-1) >= 0 and self.words != "auto":
                picked = content_of(said, self.processor, self.words, self.repeats)
                columns = [columns[n] for n in picked]
            found = self._shift(row, columns)
            if found is not None:
                on = image[row]
                saliency[row, 0, 0, on] = normalise(found[: len(on)][on.to(found.device)]).cpu()
        device = self.seen[-1][2].device
        return Gaze(GrowingMask(saliency.to(device)), GrowingMask(question.to(device)))

    def _shift(self, row: int, content: Sequence[int]) -> Tensor | None:
        """Mean shift of the kept heads at the content words of one sample, "K"."""
        kept: list[Tensor] = []
        length = max(weights.shape[-1] for _, _, weights in self.seen)
        for layer in sorted(self.layers):
            parts = [(at[row], w[row]) for n, at, w in self.seen if n == layer]
            at = torch.cat([columns for columns, _ in parts])
            weights = torch.cat([pad(w, (0, length - w.shape[-1])) for _, w in parts], 1)
            order = at.argsort(stable=True)
            order = order[at[order] >= 0]
            at, weights = at[order], weights[:, order.to(weights.device)]
            rising = shifts(weights)  # "H R-1 K": of rows 1, 2, ...
            wanted = torch.isin(at[1:], torch.tensor(list(content), device="cpu")) & (
                at[1:] == at[:-1] + 1
            )
            if bool(wanted.any()):
                kept.append(keep_heads(rising[:, wanted.to(rising.device)]).flatten(0, 1))
        return torch.cat(kept).mean(0) if kept else None
