"""From a caption to normalised words, as the CHAIR scripts do it with NLTK."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from regaze.evals.benchmarks.nltk_light import import_nltk
from regaze.evals.benchmarks.singularize import singularize

if TYPE_CHECKING:
    from nltk.tag import PerceptronTagger
    from nltk.tokenize import NLTKWordTokenizer, PunktTokenizer

Sentences = Literal["punkt", "rule"]

_WORDNET_CLASSES = {"J": "a", "V": "v", "N": "n", "R": "r"}


def tokenize(text: str, sentences: Sentences) -> list[str]:
    """Lower-case Treebank tokens, sentence by sentence.

    The sentence split matters: the Treebank rules separate only the last full stop of what they are
    given, so "dog." in mid-paragraph would be lost.

    Args:
        text: A caption.
        sentences: ``punkt``: NLTK's English model, as the scripts do; ``rule``: a new sentence
            after a stop, exclamation or question mark before a blank. The rule goes wrong after
            abbreviations ("mr. smith").
    """
    text = text.lower()
    parts = _punkt().tokenize(text) if sentences == "punkt" else re.split(r"(?<=[.!?])\s+", text)
    return [token for part in parts for token in _treebank().tokenize(part)]


def best_sentences() -> Sentences:
    """``punkt`` where NLTK finds its data, otherwise ``rule``."""
    try:
        _punkt()
    except LookupError:
        return "rule"
    return "punkt"


def singulars(tokens: Sequence[str]) -> list[str]:
    """The official script's normaliser."""
    return [singularize(token) for token in tokens]


def lemmas(tokens: Sequence[str]) -> list[str]:
    """OPERA's normaliser: WordNet lemma by the part of speech that NLTK's tagger gives.

    shikiw/OPERA@61426ef ``chair.py``. The outcome depends on the whole sentence and on the tagger's
    model: plurals taken for verbs ("vases") are lost, and "men" stays "men".
    """
    from nltk.stem import WordNetLemmatizer

    lemmatizer = WordNetLemmatizer()
    return [
        lemmatizer.lemmatize(token, _WORDNET_CLASSES.get(tag[:1], "n"))
        for token, tag in _tagger().tag(list(tokens))
    ]


NORMALIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "official": singulars,
    "opera": lemmas,
}


def require_nltk_data() -> None:
    """Check that the profile opera can run.

    Raises:
        FileNotFoundError: NLTK data is missing; the message says how to get it.
    """
    try:
        _punkt()
        lemmas(["dogs"])
    except LookupError:
        raise FileNotFoundError(
            "the CHAIR profile 'opera' needs NLTK data: run python -m nltk.downloader "
            "punkt_tab averaged_perceptron_tagger_eng wordnet, or set NLTK_DATA to a folder "
            "that holds them"
        ) from None


# Importing NLTK takes as long as everything that a command which only lists or shows does.


@lru_cache(maxsize=1)
def _treebank() -> NLTKWordTokenizer:
    import_nltk()
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=1)
def _punkt() -> PunktTokenizer:
    import_nltk()
    from nltk.tokenize import PunktTokenizer

    return PunktTokenizer("english")


@lru_cache(maxsize=1)
def _tagger() -> PerceptronTagger:
    import_nltk()
    from nltk.tag import PerceptronTagger

    return PerceptronTagger()
