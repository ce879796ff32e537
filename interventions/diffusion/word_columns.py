"""Words of a prompt: their strengths as people write them, and their columns in attention."""

from __future__ import annotations

import re
from collections.abc import Sequence

from regaze.hooks.diffusion.text import Part

_WEIGHTED = re.compile(r"\(([^():]+):\s*([-+0-9.eE]+)\s*\)")


def read_weights(text: str) -> tuple[str, dict[str, float]]:
    """A prompt and its words' strengths from ``(a red:1.4) cat``.

    Args:
        text: The marked prompt; a weighted phrase stands in parentheses, with a colon and a number.

    Returns:
        The prompt as it goes to the pipeline, and the strengths.

    Raises:
        ValueError: Parentheses without a number, or within others.
    """
    words = {phrase.strip(): float(weight) for phrase, weight in _WEIGHTED.findall(text)}
    plain = _WEIGHTED.sub(lambda found: found[1].strip(), text)
    if re.search(r"[()]", plain):
        raise ValueError(
            f"reweight: {text!r}: write a strength as (a red:1.4), with a number, and no "
            "parentheses within others"
        )
    return plain, words


def holds(text: Sequence[Part], sample: int, word: str | int) -> bool:
    """True unless a prompt is known to lack a word."""
    prompts = [part.prompts[sample] for part in text if part.prompts is not None]
    return isinstance(word, int) or not prompts or any(one.find(word) for one in prompts)


def columns_of(
    method: str, word: str | int, text: Sequence[Part], sample: int, length: int
) -> list[int]:
    """The columns of a word in all parts of a text stream.

    Raises:
        ValueError: It isn't in the prompt, or columns aren't known by words.
    """
    if isinstance(word, int):
        if word >= length:
            raise ValueError(f"{method}: column {word} doesn't exist; the text has {length}")
        return [word]
    found, listed = [], []
    for part in text:
        if part.prompts is None:
            raise ValueError(
                f"{method}: which columns hold {word!r} isn't known, because {part.unread}; give "
                "column numbers"
            )
        prompt = part.prompts[sample]
        listed.append(prompt.listed())
        found += [part.columns.start + i for tokens in prompt.find(word) for i in tokens]
    if not found:
        raise ValueError(
            f"{method}: {word!r} isn't in the prompt; its tokens are {'; '.join(listed)}"
        )
    return sorted(set(found))
