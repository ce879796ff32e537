"""Prompts as a model's processor makes them: chat template, token ids, images read once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image
from torch import Tensor

_YES, _NO = ("yes", "Yes", "YES"), ("no", "No", "NO")


@dataclass(frozen=True)
class Question:
    """What is asked once.

    Attributes:
        prompt: The user's text.
        image: What is shown; None for nothing.
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


class Prompter:
    """Turns questions into a model's inputs.

    Attributes:
        processor: The model's processor, with a chat template.
        tokenizer: Its tokenizer.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        # Each condition asks the same questions, and a template is slow to fill in.
        self._filled = lru_cache(maxsize=10_000)(self._fill)

    def text(self, prompt: str, *, images: int, answer: str | None = None) -> str:
        """One user turn in the model's chat template, and the answer to it or its beginning."""
        return self._filled(prompt, images, answer)

    def _fill(self, prompt: str, images: int, answer: str | None) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] * images
        content = [*content, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        made: str = self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None
        )
        return made

    def inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Tensor]:
        """Left-padded model inputs on the CPU: a text in the chat template and its images per row.

        Raises:
            Exception: Whatever the processor says of an image or text it can't take.
        """
        shown = [list(row) for row in images if row]
        found = self.processor(
            text=list(texts),
            images=shown or None,
            add_special_tokens=self._special(texts[0]),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(found)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in the chat template, its images as bare placeholders."""
        found: list[int] = self.tokenizer(text, add_special_tokens=self._special(text))["input_ids"]
        return found

    def tail(self, text: str, other: str) -> tuple[list[int], list[int]]:
        """Where two prompts about the same image differ: the ends of their ids after what is equal.

        Those ends hold no image, so the ids of the whole prompts differ in the same way once the
        image stands in the place of its placeholder.
        """
        one, two = self.ids(text), self.ids(other)
        same = common([one, two])
        return one[same:], two[same:]

    def answer_ids(self, question: Question, text: str, choice: str) -> list[int]:
        """Token ids of an answer as a whole turn, the template's end included.

        Args:
            question: What is asked.
            text: Its prompt in the chat template.
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

    def _special(self, text: str) -> bool:
        # Some templates write the BOS token themselves; it must not come twice.
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))


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
