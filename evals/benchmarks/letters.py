"""The option that an answer names, by letter or by its text."""

from __future__ import annotations

import re
from collections.abc import Mapping

# What hosted models say when they refuse to choose.
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NONE = "Z"


def lmms_letter(text: str, letters: str = "AB") -> str:
    """The letter by lmms-eval's rules for MMVP, or ``""``.

    EvolvingLMMs-Lab/lmms-eval@75571cf ``lmms_eval/tasks/mmvp/utils.py``. In this order: a letter
    alone or at the start; after "answer is" or "option"; at the end of any word (so "umbrella"
    names A); the first character. Case is ignored, so "a dog" names A.

    Args:
        text: The answer.
        letters: The letters to choose from, upper case.
    """
    letter = rf"\(?([{letters}])\)?"
    text = text.strip()
    for pattern in (
        rf"^{letter}\.?$",
        rf"^{letter}[.\s]",
        rf"answer\s+is\s+{letter}",
        rf"option\s+{letter}",
        rf"{letter}(?:\s|$)",
    ):
        if found := re.search(pattern, text, re.IGNORECASE):
            return found[1].upper()
    start = text[:1].upper()
    return start if start and start in letters else ""


def vlmevalkit_letter(text: str, options: Mapping[str, str]) -> str:
    """The letter by VLMEvalKit's exact matching, ``Z`` for a refusal, or ``""``.

    open-compass/VLMEvalKit@e8e78f0 ``vlmeval/utils/matching_util.py``, without its judge: one
    letter, upper case, among the last four words; "answer is X"; else the only option whose
    text occurs in the answer.

    Args:
        text: The answer.
        options: Text of each option by its upper-case letter.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return _NONE
    return _named(text, options) or _quoted(text, options)


def _named(text: str, options: Mapping[str, str]) -> str:
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    present = [letter for letter in options if letter in words]
    if len(present) == 1 and words.index(present[0]) > len(words) - 5:
        return present[0]
    if not present and _NONE in words:
        return _NONE
    said = re.search(r"answer\s+is\s+\**([ABCD])\**", text, re.IGNORECASE)
    return said[1].upper() if said and said[1].upper() in options else ""


def _quoted(text: str, options: Mapping[str, str]) -> str:
    said = text.lower()
    if len(said) > 2 * sum(map(len, options.values())):
        return ""
    found = [letter for letter, option in options.items() if option.lower() in said]
    return found[0] if len(found) == 1 else ""
