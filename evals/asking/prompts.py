"""Questions, and the token ids of prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from regaze.interventions.lvlm.turns import Turns

_YES, _NO = ("yes", "Yes", "YES"), ("no", "No", "NO")


@dataclass(frozen=True)
class Question:
    """One question to a model.

    Attributes:
        prompt: The user's text.
        image: The picture shown; None for none.
        key: Questions with the same key show the same image.
        choices: Answers to choose among; empty: the answer is generated.
        more: Images shown after the first.
    """

    prompt: str
    image: Image.Image | None
    key: str | None = None
    choices: tuple[str, ...] = ()
    more: tuple[Image.Image, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """All that is shown, in order."""
        return [] if self.image is None else [self.image, *self.more]


class Prompter(Turns):
    """Turns questions into a model's inputs."""

    def tail(self, text: str, other: str) -> tuple[list[int], list[int]]:
        """The ends of two prompts about the same image: their ids after the common beginning.

        Those ends hold no image, so the ids of the whole prompts differ in the same way once the
        image stands in the place of its placeholder.
        """
        one, two = self.ids(text), self.ids(other)
        same = common([one, two])
        return one[same:], two[same:]

    def answer_ids(self, question: Question, text: str, choice: str) -> list[int]:
        """Token ids of an answer as a whole turn, the template's end included.

        Args:
            question: The question's text.
            text: The question's prompt in the chat template.
            choice: The answer.

        Raises:
            ValueError: It has no tokens.
        """
        turn = self.text(question.prompt, images=len(question.images), answer=choice)
        if turn.startswith(text) and choice in turn[len(text) :]:
            rest = turn[len(text) :]
        else:  # A template that can't write an answer after its own prompt.
            rest = f" {choice}{self.tokenizer.eos_token or ''}"
        before, whole = self.ids(text), self.ids(text + rest)
        found = whole[common([before, whole]) :]
        if not found:
            raise ValueError(f"the choice {choice!r} has no tokens, so it has no likelihood")
        return found

    def yes_no_ids(self) -> tuple[list[int], list[int]]:
        """Tokens that say yes and tokens that say no: common spellings that are one token.

        Either is empty if the tokenizer writes all of them in pieces.
        """
        special = {"add_special_tokens": False}

        def single(words: Sequence[str]) -> list[int]:
            spelled = [
                self.tokenizer(f"{gap}{w}", **special)["input_ids"]
                for w in words
                for gap in ("", " ")
            ]
            return sorted({ids[0] for ids in spelled if len(ids) == 1})

        return single(_YES), single(_NO)


def common(rows: Sequence[list[int]]) -> int:
    """Length of the longest common beginning."""
    first, last = min(rows), max(rows)
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def margin(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> list[float]:
    """Log of the odds of yes to no, one per row of "B V": logsumexp over spellings."""
    wide = logits.float()
    return (wide[:, list(yes)].logsumexp(-1) - wide[:, list(no)].logsumexp(-1)).tolist()
