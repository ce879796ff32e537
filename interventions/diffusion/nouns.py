"""The nouns of a prompt, found by NLTK, and its noun phrases, found by spaCy."""

from __future__ import annotations

import functools
import re
from typing import Any


def noun_spans(text: str) -> list[tuple[int, int]]:
    """The places of the nouns of a text, (start, end) in characters.

    Args:
        text: English.

    Raises:
        LookupError: NLTK's tagger has no data here; the message says how to get it.
    """
    # Here: nobody else needs a tagger.
    from nltk import pos_tag

    words = list(re.finditer(r"[\w'-]+|[^\w\s]", text))
    try:
        tagged = pos_tag([word[0] for word in words])
    except LookupError as error:
        raise LookupError(
            'tokens="auto" finds nouns with NLTK\'s tagger: run python -m nltk.downloader '
            "averaged_perceptron_tagger_eng, or name the words"
        ) from error
    return [word.span() for word, (_, tag) in zip(words, tagged, strict=True) if tag[:2] == "NN"]


@functools.cache
def _parser() -> Any:
    try:
        # Here: nobody else needs a parser.
        import spacy  # type: ignore[import-not-found, unused-ignore]

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ImportError(
            'phrases="auto" finds noun phrases with spaCy: pip install spacy, then python -m spacy '
            "download en_core_web_sm; or name the phrases"
        ) from error


def noun_phrases(text: str) -> list[str]:
    """The noun phrases of more than one word of a text, at every level, longest first.

    A noun's phrase is all that depends on it, and its base phrase what stands before it.

    Args:
        text: English.

    Raises:
        ImportError: spaCy or its model isn't here; the message says how to get it.
    """
    read = _parser()(text)
    spans = {(chunk.start, chunk.end) for chunk in read.noun_chunks}
    spans |= {
        (token.left_edge.i, token.right_edge.i + 1)
        for token in read
        if token.pos_ in ("NOUN", "PROPN")
    }
    wide = sorted((span for span in spans if span[1] - span[0] > 1), key=lambda s: s[0] - s[1])
    return list(dict.fromkeys(str(read[start:end]) for start, end in wide))
