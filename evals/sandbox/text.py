"""The words of the sandbox: questions, captions and the vocabulary that they need."""

from __future__ import annotations

from collections.abc import Sequence

from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES

CAPTION_PROMPT = "Describe the image."
LONG_CAPTION_PROMPT = "Please describe this image in detail."

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_WORDS = (
    *("user", "assistant", ":", "?", ".", ","),
    *("is", "there", "a", "an", "in", "the", "image", "and", "yes", "no"),
    *("please", "describe", "this", "detail"),
)
VOCABULARY = (*SPECIAL_TOKENS, *_WORDS, *COLOURS, *SHAPES)
"""All tokens in the order of their ids."""


def question(phrase: str) -> str:
    """The POPE question after an object, e.g. ``"red circle"`` or ``"arrow"``."""
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"Is there {article} {phrase} in the image?"


def caption(phrases: Sequence[str]) -> str:
    """One sentence that lists the objects: ``"a red circle, a blue moon and a white star."``."""
    *firsts, last = (f"a {phrase}" for phrase in phrases)
    return f"{', '.join(firsts)} and {last}." if firsts else f"{last}."
