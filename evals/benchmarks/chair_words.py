"""Objects that a caption mentions, by CHAIR's word table and word rules.

LisaAnne/Hallucination@6e4d33c, ``utils/chair.py`` and ``data/synonyms.txt``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regaze.evals.benchmarks.chair_tokens import (
    NORMALIZERS,
    Sentences,
    best_sentences,
    require_nltk_data,
    tokenize,
)
from regaze.hooks.checks import unknown

TABLE_URL = "https://github.com/LisaAnne/Hallucination/blob/6e4d33c/data/synonyms.txt"
TABLE_SHA256 = "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2"
TABLE_VARIABLE = "REGAZE_CHAIR_WORDS"

# Two neighbouring words that count as one, and what becomes of them.
_PAIRS = {
    **{
        pair: pair
        for pair in (
            *("motor bike", "motor cycle", "air plane", "traffic light", "street light"),
            *("traffic signal", "stop light", "fire hydrant", "stop sign", "parking meter"),
            *("suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket"),
            *("wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
            *("potted plant", "laptop computer", "home plate", "train track"),
        )
    },
    **{
        f"{age} {animal}": animal
        for age in ("baby", "adult")
        for animal in (
            *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
            *("giraffe", "animal", "cub"),
        )
    },
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # what the official singulars make of "wine glass"
}


@dataclass(frozen=True)
class Mention:
    """An object word of a caption and the class it stands for, e.g. kitten and cat."""

    word: str
    name: str


@dataclass(frozen=True)
class Caption:
    """A caption as CHAIR sees it.

    Attributes:
        tokens: Normalised words and punctuation, word pairs joined.
        mentions: Object words in order; every occurrence counts.
    """

    tokens: tuple[str, ...]
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class ObjectFinder:
    """Finds COCO objects in a caption.

    Attributes:
        table: Class of each object word.
        profile: The way words are normalised: ``official`` or ``opera``.
        sentences: The way sentences are split, see `chair_tokens.tokenize`; by default
            as the scripts do where NLTK's data is there.

    Raises:
        ValueError: Unknown profile.
        FileNotFoundError: The profile needs NLTK data that isn't there.
    """

    table: Mapping[str, str] = field(repr=False)
    profile: str = "official"
    sentences: Sentences = field(default_factory=best_sentences)

    def __post_init__(self) -> None:
        if self.profile not in NORMALIZERS:
            raise ValueError(unknown("CHAIR profile", self.profile, NORMALIZERS))
        if self.profile == "opera":
            require_nltk_data()

    @property
    def classes(self) -> Mapping[str, str]:
        """Names that count as the same class, by its name in annotations."""
        return self.table

    def __call__(self, text: str) -> Caption:
        """The caption's tokens and mentions."""
        tokens = join_pairs(NORMALIZERS[self.profile](tokenize(text, self.sentences)))
        return Caption(tuple(tokens), find_mentions(tokens, self.table))


def join_pairs(tokens: Sequence[str]) -> list[str]:
    """Join the neighbours that CHAIR counts as one word, from left to right."""
    joined: list[str] = []
    i = 0
    while i < len(tokens):
        pair = _PAIRS.get(" ".join(tokens[i : i + 2]))
        joined.append(pair or tokens[i])
        i += 2 if pair else 1
    return joined


def find_mentions(tokens: Sequence[str], table: Mapping[str, str]) -> tuple[Mention, ...]:
    """The tokens that are in the table, with their classes; beside a toilet no seat is a chair."""
    ignored = {"seat"} if "toilet" in tokens else set()
    return tuple(Mention(t, table[t]) for t in tokens if t in table and t not in ignored)


def load_table(path: Path | str | None = None) -> dict[str, str]:
    """CHAIR's word table, class by word, from the official file.

    Args:
        path: The file; default: what the environment variable ``REGAZE_CHAIR_WORDS`` names, or
            ``regaze/chair/synonyms.txt`` in the user's cache folder.

    Raises:
        FileNotFoundError: The file isn't there; the message says where to get it.
        ValueError: The file isn't the official one.
    """
    found = Path(path or os.environ.get(TABLE_VARIABLE) or _cache() / "chair" / "synonyms.txt")
    if not found.is_file():
        raise FileNotFoundError(
            f"CHAIR's word table is not at {found}: get {TABLE_URL} (SHA-256 {TABLE_SHA256}), then "
            f"put it there, pass its path or set {TABLE_VARIABLE}"
        )
    content = found.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != TABLE_SHA256:
        raise ValueError(
            f"{found} is not CHAIR's word table: its SHA-256 is {digest}, not {TABLE_SHA256}; "
            f"get it from {TABLE_URL}"
        )
    return parse_table(content.decode())


def parse_table(text: str) -> dict[str, str]:
    """Rows of words, the class first, as class by word.

    Entries keep the blanks around them, as in the original, where two of them (" motor bike",
    " cheesecake") therefore never match.
    """
    rows = [line.strip().split(", ") for line in text.splitlines()]
    return {word: row[0] for row in rows for word in row}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze"
