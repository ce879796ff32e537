"""The nouns of a description that AMBER looks at, and the objects that they stand for.

junyangwang0410/AMBER@534babf ``inference.py``. NLTK finds the nouns and spaCy's word vectors
compare them; both are only loaded where a description is scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from regaze.evals.benchmarks.data import read_json, read_text
from regaze.evals.benchmarks.nltk_light import import_nltk

VECTORS = "en_core_web_lg"
SIMILAR = 0.8

FindNouns = Callable[[str], Sequence[str]]
Similarity = Callable[[str, str], float]


@dataclass(frozen=True)
class Vocabulary:
    """The nouns that AMBER looks at; all others are ignored.

    Attributes:
        associations: For each object the words that stand for it as well.
        safe: Nouns that never count as hallucinated.
    """

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @classmethod
    def from_files(cls, data: Path) -> Vocabulary:
        """Read ``relation.json`` and ``safe_words.txt`` of AMBER's folder ``data``.

        Raises:
            ValueError: The first isn't a table of words.
            OSError: A file is missing or can't be read.
        """
        path = data / "relation.json"
        table = read_json(path)
        if not isinstance(table, dict) or not all(isinstance(w, list) for w in table.values()):
            raise ValueError(f"{path} is not AMBER's table of associated words")
        safe = read_text(data / "safe_words.txt")
        return cls(table, frozenset(safe.splitlines()))

    @cached_property
    def nouns(self) -> frozenset[str]:
        """All objects and the words associated with them."""
        others = (word for words in self.associations.values() for word in words)
        return frozenset(self.associations).union(others)

    def owners(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """Each word that stands for one of the objects, with that object's place.

        Associated words come first and then the objects themselves, as in the original: a word
        credits only the first object that it stands for.
        """
        associated = [(word, i) for i, name in enumerate(objects) for word in self._of(name)]
        return associated + [(name, i) for i, name in enumerate(objects)]

    def _of(self, name: str) -> Sequence[str]:
        if name not in self.associations:
            raise ValueError(f"AMBER's table of associated words has no object {name!r}")
        return self.associations[name]


def count_objects(
    nouns: Iterable[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    vocabulary: Vocabulary,
    similar: Similarity,
) -> dict[str, int]:
    """Sufficient statistics of one description.

    A noun that stands for no object of the image is still fine if its vector is like one's, and
    then that object counts as covered.

    Args:
        nouns: In order, with repeats.
        truth: Objects in the image.
        hallu: Objects that models like to add to it.
        vocabulary: The nouns that matter.
        similar: Likeness of two words; above 0.8 they count as one.

    Returns:
        ``nouns`` that matter, ``hallucinated`` ones, ``covered`` and ``truth`` (its size),
        ``expected`` hallucinations made and ``hallu`` (its size), ``n`` (1), ``clean`` and
        ``correct`` (nothing hallucinated).

    Raises:
        ValueError: An object isn't in the vocabulary.
    """
    kept = [noun for noun in nouns if noun in vocabulary.nouns]
    there, added = vocabulary.owners(truth), vocabulary.owners(hallu)
    covered: set[int] = set()
    expected: set[int] = set()
    hallucinated = 0

    def alike(noun: str, owners: list[tuple[str, int]]) -> set[int]:
        return _first(i for word, i in owners if similar(noun, word) > SIMILAR)

    for noun in kept:
        if noun in vocabulary.safe:
            continue
        if same := _first(i for word, i in there if word == noun):
            covered |= same
            continue
        expected |= _first(i for word, i in added if word == noun) | alike(noun, added)
        close = alike(noun, there)
        covered |= close
        hallucinated += not close
    return {
        "nouns": len(kept),
        "hallucinated": hallucinated,
        "covered": len(covered),
        "truth": len(truth),
        "expected": len(expected),
        "hallu": len(hallu),
        "n": 1,
        "clean": int(not hallucinated),
        "correct": int(not hallucinated),
    }


def nltk_nouns() -> FindNouns:
    """The nouns of a text in order, in the singular, as the official script finds them.

    They keep their case, so a noun that begins a sentence is none of AMBER's.

    Raises:
        FileNotFoundError: NLTK's data is missing; the message says how to get it.
    """
    import_nltk()
    from nltk import pos_tag, word_tokenize
    from nltk.stem import WordNetLemmatizer

    lemma = WordNetLemmatizer().lemmatize

    def find(text: str) -> list[str]:
        return [lemma(word) for word, tag in pos_tag(word_tokenize(text)) if tag.startswith("NN")]

    try:
        find("Dogs bark.")
    except LookupError:
        raise FileNotFoundError(
            "AMBER's descriptions are scored with NLTK data: run python -m nltk.downloader "
            "punkt_tab averaged_perceptron_tagger_eng wordnet, or set NLTK_DATA to a folder that "
            "holds them"
        ) from None
    return find


def spacy_similarity(vectors: Path | str = VECTORS) -> Similarity:
    """Likeness of two words by spaCy's word vectors.

    Args:
        vectors: Name or folder of a spaCy pipeline; the official script takes the default.

    Raises:
        ImportError: spaCy or the pipeline isn't installed; the message says how to get them.
    """
    try:
        import spacy

        # make_doc only tokenises: no other part of the pipeline changes a word's vector.
        doc = cache(spacy.load(vectors).make_doc)
    except (ImportError, OSError):
        raise ImportError(
            f"AMBER's descriptions are scored with spaCy's word vectors {vectors}: run pip install "
            f"spacy, then python -m spacy download {VECTORS}"
        ) from None

    @cache
    def similar(one: str, other: str) -> float:
        with warnings.catch_warnings():
            # A word without vector is like no other, and spaCy warns of each.
            warnings.filterwarnings("ignore", message=r"\[W00[78]\]")
            return float(doc(one).similarity(doc(other)))

    return similar


def _first(places: Iterable[int]) -> set[int]:
    """The first place, if there is any."""
    place = next(iter(places), None)
    return set() if place is None else {place}
