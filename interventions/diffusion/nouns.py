"""The nouns of a prompt, found by NLTK."""

from __future__ import annotations

import re


def noun_spans(text: str) -> list[tuple[int, int]]:
    """Where the nouns of a text are, (start, end) in characters.

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
