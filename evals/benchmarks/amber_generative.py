"""AMBER, generative part: what does a description mention that isn't there, what does it miss?

arXiv:2311.07397; junyangwang0410/AMBER@534babf ``inference.py``. Each image is annotated with the
objects in it (truth) and with those that models like to add (hallu). How nouns are found and
matched: `regaze.evals.benchmarks.amber_words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regaze.evals.benchmarks.amber import (
    GENERATIVE,
    official_percent,
    official_share,
    one_decimal,
    read_rows,
)
from regaze.evals.benchmarks.amber_words import (
    VECTORS,
    FindNouns,
    Similarity,
    Vocabulary,
    count_objects,
    nltk_nouns,
    spacy_similarity,
)
from regaze.evals.benchmarks.data import Loader, Row, images_in
from regaze.evals.benchmarks.questions import Questions, length, shares
from regaze.evals.benchmarks.rows import arrange, require, texts
from regaze.evals.task import Counts, Item, Sums


@dataclass
class AmberGenerative(Questions):
    """The task: one description per image.

    An item's target holds its ``truth`` and ``hallu``.

    Attributes:
        vocabulary: The nouns that matter.
        nouns: Finds the nouns of a text, in the singular.
        similar: Likeness of two words.
    """

    vocabulary: Vocabulary = field(repr=False, kw_only=True)
    nouns: FindNouns = field(repr=False, kw_only=True)
    similar: Similarity = field(repr=False, kw_only=True)
    profile: str = "official"
    max_new_tokens: int = 512
    name: str = "amber-generative"
    headline: tuple[str, ...] = ("chair", "cover", "hal", "cog", "words")

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in self.items:
            self.vocabulary.owners([*item.target["truth"], *item.target["hallu"]])

    @classmethod
    def from_files(
        cls,
        data: Path | str,
        images: Path | str,
        *,
        vectors: Path | str = VECTORS,
        max_new_tokens: int = 512,
    ) -> AmberGenerative:
        """Read AMBER's own files.

        Args:
            data: The folder ``data`` of AMBER's repository.
            images: Folder of ``AMBER_1.jpg`` and the others.
            vectors: See `regaze.evals.benchmarks.amber_words.spacy_similarity`.
            max_new_tokens: Longest description to generate.

        Raises:
            ImportError: spaCy or its vectors aren't installed; the message says how to get them.
            ValueError: Files of something else, a query without annotation, repeated ids.
            OSError: A file, or NLTK's data, is missing or can't be read.
        """
        rows = ((p, row) for p, row in read_rows(Path(data)) if row["type"] == GENERATIVE)
        return cls(
            arrange((place, _item(place, row)) for place, row in rows),
            images_in(images),
            max_new_tokens=max_new_tokens,
            vocabulary=Vocabulary.from_files(Path(data)),
            nouns=nltk_nouns(),
            similar=spacy_similarity(vectors),
        )

    @classmethod
    def from_records(
        cls,
        records: Iterable[Row],
        load_image: Loader,
        vocabulary: Vocabulary,
        *,
        nouns: FindNouns,
        similar: Similarity,
        max_new_tokens: int = 512,
    ) -> AmberGenerative:
        """Take queries from memory.

        Args:
            records: ``id``, ``image``, ``query``, ``truth`` and ``hallu``.
            load_image: Gives the image of a record's ``image`` field.
            vocabulary: The nouns that matter.
            nouns: Finds the nouns of a text, e.g. `nltk_nouns`.
            similar: Likeness of two words, e.g. `spacy_similarity`.
            max_new_tokens: As in `from_files`.

        Raises:
            ValueError: As in `from_files`.
        """
        rows = ((f"row {number}", row) for number, row in enumerate(records))
        items = arrange((place, _item(place, row)) for place, row in rows)
        return cls(
            items,
            load_image,
            max_new_tokens=max_new_tokens,
            vocabulary=vocabulary,
            nouns=nouns,
            similar=similar,
        )

    def counts(self, item: Item, text: str) -> Counts:
        """The counts of `count_objects`, and the length of the description."""
        counts = count_objects(
            self.nouns(text),
            item.target["truth"],
            item.target["hallu"],
            self.vocabulary,
            self.similar,
        )
        return {**counts, **length(text)}

    def metrics(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """CHAIR, Cover, Hal and Cog as the official script prints them, words and empty answers.

        Shares of hallucinated nouns, covered objects, descriptions with any hallucinated noun, and
        made among expected hallucinations: every denominator is too large by 0.001, percentages
        are rounded to one decimal.
        """
        return {
            "chair": official_share(sums["hallucinated"], sums["nouns"]),
            "cover": official_share(sums["covered"], sums["truth"]),
            "hal": one_decimal(100 - official_percent(sums["clean"], sums["n"])) / 100,
            "cog": official_share(sums["expected"], sums["hallu"]),
            **shares(sums),
        }

    @property
    def directions(self) -> Mapping[str, int]:
        """For each metric: +1 if higher is better, -1 if lower is, 0 if neither."""
        return {"chair": -1, "cover": 1, "hal": -1, "cog": -1, "words": 0, "empty": -1}


def _item(place: str, row: Row) -> Item:
    require(place, row, ("id", "image", "query", "truth", "hallu"), "generative AMBER")
    target = {name: texts(place, row, name, "list of objects") for name in ("truth", "hallu")}
    return Item(str(row["id"]), str(row["image"]), str(row["query"]), target=target)
