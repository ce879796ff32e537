"""Text about scenes: POPE's question, CHAIR's prompt and captions."""

from __future__ import annotations

from collections.abc import Sequence

CAPTION_PROMPT = "Please describe this image in detail."
EMPTY_CAPTION = "A photo without any objects."


def with_article(kind: str) -> str:
    """A kind with its indefinite article, e.g. ``"an apple"``."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def question(kind: str) -> str:
    """POPE's question after a kind."""
    return f"Is there {with_article(kind)} in the image?"


def caption(kinds: Sequence[str]) -> str:
    """One sentence that lists kinds, e.g. ``"A photo of a dog, a ball and an apple."``."""
    if not kinds:
        return EMPTY_CAPTION
    *firsts, last = (with_article(kind) for kind in kinds)
    return f"A photo of {', '.join(firsts)} and {last}." if firsts else f"A photo of {last}."
