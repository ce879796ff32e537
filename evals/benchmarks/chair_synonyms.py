"""CHAIR's reading of captions for classes of one's own.

CHAIR's word table, its pairs of words and its singulars are about COCO's 80 classes. For other
classes this is the same idea with the same singulars (`singularize`), made regular: names and words
of the table are normalised as captions are, so that a bus counts, and may have several words; the
longest that fits is taken. Its figures are comparable with each other, not with CHAIR's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from regaze.evals.benchmarks.chair_tokens import Sentences, best_sentences, singulars, tokenize
from regaze.evals.benchmarks.chair_words import Caption, Mention
from regaze.evals.benchmarks.data import read_text
from regaze.hooks.checks import unknown

Words = tuple[str, ...]


@dataclass(frozen=True)
class SynonymFinder:
    """Finds classes of one's own in a caption.

    Attributes:
        table: Class of each word or phrase, as `load_synonyms` reads it.
        sentences: The way sentences are split, see `chair_tokens.tokenize`.
    """

    table: Mapping[str, str] = field(repr=False)
    sentences: Sentences = field(default_factory=best_sentences)
    profile: ClassVar[str] = "own"

    @property
    def classes(self) -> Mapping[str, str]:
        """Each class's name, by itself."""
        return {name: name for name in self.table.values()}

    @cached_property
    def phrases(self) -> Mapping[Words, str]:
        """Class of each phrase as a caption shows it."""
        return {form: name for word, name in self.table.items() for form in forms(word)}

    def __call__(self, text: str) -> Caption:
        """The caption's tokens, phrases joined, and mentions; the longest phrase counts."""
        words = singulars(tokenize(text, self.sentences))
        longest = max(map(len, self.phrases))
        tokens: list[str] = []
        mentions: list[Mention] = []
        place = 0
        while place < len(words):
            ends = range(min(place + longest, len(words)), place, -1)
            end = next((e for e in ends if tuple(words[place:e]) in self.phrases), place + 1)
            tokens.append(" ".join(words[place:end]))
            if name := self.phrases.get(tuple(words[place:end])):
                mentions.append(Mention(tokens[-1], name))
            place = end
        return Caption(tuple(tokens), tuple(mentions))


def load_synonyms(path: Path, classes: Iterable[str]) -> dict[str, str]:
    """A table of one's own: class by word or phrase.

    Args:
        path: Text, a row per class: its name and then other words for it, separated by commas;
            blanks around them, empty lines and lines that begin with # don't count.
        classes: Names of the annotations' classes: each needs a row, and no row may be of a class
            that nobody looked for, whose every mention would count as hallucinated.

    Raises:
        ValueError: Rows and classes differ, or a word stands for two classes; the message names
            file and line.
        OSError: The file can't be read.
    """
    known = list(classes)
    table: dict[str, str] = {}
    places: dict[Words, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *others = (" ".join(part.split()) for part in line.split(","))
        if name not in known:
            raise ValueError(f"{path}:{number}: {unknown('class of the annotations', name, known)}")
        for word in (name, *filter(None, others)):
            for form in forms(word):
                if places.setdefault(form, number) != number:
                    raise ValueError(
                        f"{path}:{number}: {word!r} already stands for another row, {places[form]}"
                    )
            table[word] = name
    if missing := [name for name in known if name not in table.values()]:
        raise ValueError(
            f"{path} has no row for {len(missing)} of the annotations' {len(known)} classes: "
            f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}; a row is the class and "
            "other words for it, separated by commas"
        )
    return table


def forms(phrase: str) -> set[Words]:
    """Forms of a phrase among a caption's tokens: as one, or in the plural, as it stands here.

    Singulars aren't final: of "buses" they make "bus", and of "bus" itself "bu".
    """
    words = tokenize(phrase, "rule")
    return {tuple(singulars(words)), (*singulars(words[:-1]), *words[-1:])}
