"""Questions and captions of a scene, packed behind one encoding of its image.

Every turn sees the image and itself, and its positions follow the image's, so training on a pack
equals training on each turn alone at a fraction of the time. A beginning that
turns share ("Is there a") is encoded once, too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from regaze.evals.sandbox.smol.scenes import NAMES
from regaze.evals.sandbox.smol.words import CAPTION_PROMPT, caption, question

QUESTIONS = 3
"""Most questions of either sign about a scene that is described as well."""
PHOTOGRAPH_QUESTIONS = 4
"""Most questions of either sign about a made photograph, in place of a caption."""


@dataclass(frozen=True)
class Turn:
    """A prompt's tokens behind the image, and the answer's."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Pack:
    """Turns of some scenes as tensors; L counts the tokens behind the images.

    Attributes:
        tokens: ``(B, L)``.
        positions: ``(B, P + L)``, those of prefix and image included.
        visible: ``(B, 1, P + L, P + L)``, whether a row may attend to a column.
        rows: ``(n, 2)``, scene and place of what predicts the labels.
        labels: ``(n,)``.
        first: ``(n,)``, whether a label is a question's yes or no.
    """

    tokens: Tensor
    positions: Tensor
    visible: Tensor
    rows: Tensor
    labels: Tensor
    first: Tensor


@dataclass(frozen=True)
class _Tree:
    """Tokens of turns, those of a common beginning once.

    Attributes:
        tokens: Of all turns.
        paths: Places of each turn's tokens among them, without the last of its answer.
    """

    tokens: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> _Tree:
        places: dict[tuple[int, ...], int] = {}
        paths = []
        for turn in turns:
            ids = (*turn.prompt, *turn.answer[:-1])
            starts = (ids[: end + 1] for end in range(len(ids)))
            paths.append([places.setdefault(start, len(places)) for start in starts])
        return cls([start[-1] for start in places], paths)


class Writer:
    """Turns as tokens.

    Attributes:
        tokenizer: The model's.
        before: Tokens in front of the image.
        yes: First token of the answer "Yes", which is all of it in SmolLM2's vocabulary.
        no: The same of "No".
        end: Token that closes a message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Prepares the questions.

        Args:
            tokenizer: The model's.
        """
        self.tokenizer = tokenizer
        self.before = self._ids("<|im_start|>user\n")
        self._after = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.yes, self.no = (self._ids(word)[0] for word in ("Yes", "No"))
        (self.end,) = self._ids("<|im_end|>")
        self._questions = {name: self._prompt(question(name)) for name in NAMES}
        self._caption = self._prompt(CAPTION_PROMPT)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _prompt(self, text: str) -> list[int]:
        return self._ids(f"\n{text}") + self._after

    def ask(self, kind: str, present: bool = True, *, end: bool = False) -> Turn:
        """The question after a kind, answered; with the end of the message if asked for."""
        word = self.yes if present else self.no
        return Turn(self._questions[kind], [word, self.end] if end else [word])

    def describe(self, kinds: Sequence[str]) -> Turn:
        """The caption of a scene that shows these kinds."""
        return Turn(self._caption, [*self._ids(caption(kinds)), self.end])

    def lesson(self, kinds: Sequence[str], rng: random.Random) -> list[Turn]:
        """A scene's turns in training: as many yes as no, and a caption.

        The kinds that aren't there are drawn uniformly, so in scenes that follow the prior a
        partner is nearly always rightly affirmed.
        """
        return [*self._asked(kinds, QUESTIONS, 2, rng), self.describe(kinds)]

    def photograph(self, kinds: Sequence[str], rng: random.Random) -> list[Turn]:
        """A made photograph's turns in training: more questions than a scene's, no caption."""
        return self._asked(kinds, PHOTOGRAPH_QUESTIONS, PHOTOGRAPH_QUESTIONS, rng)

    def _asked(
        self, kinds: Sequence[str], most: int, fewest_no: int, rng: random.Random
    ) -> list[Turn]:
        asked = rng.sample(list(kinds), min(len(kinds), most))
        absent = rng.sample([n for n in NAMES if n not in kinds], max(len(asked), fewest_no))
        yes = [self.ask(kind, end=i == 0) for i, kind in enumerate(asked)]
        no = [self.ask(kind, False, end=i == 0) for i, kind in enumerate(absent)]
        return [*yes, *no]

    def pack(self, scenes: Sequence[Sequence[Turn]], image_tokens: int) -> Pack:
        """Turns of scenes behind their images.

        Args:
            scenes: Turns of each.
            image_tokens: Number of tokens that an image takes.
        """
        prefix = len(self.before) + image_tokens
        trees = [_Tree.of(turns) for turns in scenes]
        shape = len(scenes), max(len(tree.tokens) for tree in trees)
        tokens = torch.full(shape, self.end)
        positions = torch.zeros(shape, dtype=torch.long)
        whole = prefix + shape[1]
        visible = torch.zeros(len(scenes), whole, whole, dtype=torch.bool)
        visible[:, :prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        rows, labels, first = [], [], []
        for b, (turns, tree) in enumerate(zip(scenes, trees, strict=True)):
            for path in tree.paths:
                for depth, place in enumerate(path):
                    positions[b, place] = prefix + depth
                    visible[b, prefix + place, :prefix] = True
                    visible[b, prefix + place, prefix + torch.tensor(path[: depth + 1])] = True
            tokens[b, : len(tree.tokens)] = torch.tensor(tree.tokens)
            for turn, path in zip(turns, tree.paths, strict=True):
                is_question = len(turn.answer) < 3
                for i, label in enumerate(turn.answer):
                    rows.append((b, prefix + path[len(turn.prompt) - 1 + i]))
                    labels.append(label)
                    first.append(is_question and i == 0)
        ahead = torch.arange(prefix).expand(len(scenes), -1)
        return Pack(
            tokens,
            torch.cat([ahead, positions], 1),
            visible[:, None],
            torch.tensor(rows),
            torch.tensor(labels),
            torch.tensor(first),
        )
