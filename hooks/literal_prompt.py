"""The contents of an unpadded prompt's columns, read off its tokens without the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regaze.hooks.host import Host

STRUCTURE = {
    "mistral3": ("[IMG_BREAK]",),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<row_", "\n"),
    "idefics3": ("<fake_token_around_image>", "<global-img>", "<row_", "\n"),
}
"""Beginnings of tokens that stand between the patches of one picture, and so are no text."""


@dataclass(frozen=True)
class Prompt:
    """The contents of one prompt's columns."""

    image: list[bool]
    system: list[bool]
    structure: list[bool]

    @property
    def last(self) -> int:
        """Position of the row that predicts the first new token."""
        return len(self.image) - 1

    def is_text(self, position: int) -> bool:
        """Return whether a row is text after an image, in the prompt or generated."""
        if position > self.last:
            return any(self.image)
        before = any(self.image[:position])
        return before and not self.image[position] and not self.structure[position]


def read(host: Host, inputs: Mapping[str, Any]) -> Prompt:
    """Tell the columns of an unpadded prompt from its tokens.

    Raises:
        ValueError: It is more than one prompt.
    """
    if len(inputs["input_ids"]) != 1:
        raise ValueError("literal forms run one prompt at a time, without padding")
    ids: list[int] = inputs["input_ids"][0].tolist()
    image = [i in host.image_ids for i in ids]
    if not any(image):
        return Prompt(image, image, image)
    first = image.index(True)
    end = len(image) - image[::-1].index(True)
    marks = STRUCTURE.get(host.model_type, ())
    tokenizer = getattr(host.processor, "tokenizer", host.processor)
    tokens = tokenizer.convert_ids_to_tokens(ids) if marks and tokenizer else [""] * len(ids)
    structure = [
        bool(marks) and first < at < end and not image[at] and token.startswith(marks)
        for at, token in enumerate(tokens)
    ]
    return Prompt(image, [at < first for at in range(len(ids))], structure)
