"""From the tokens that a method was given to columns of the text stream."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any, Protocol

from regaze.hooks.diffusion.text import Part, Prompt
from regaze.hooks.diffusion.works import Run
from regaze.interventions.diffusion.concept_maps import Columns
from regaze.interventions.diffusion.nouns import noun_spans

_NAMELESS = re.compile(
    r"(?<![\w'-])(an?|the|and|n?or|but|of|in|on|at|by|to|for|from|with|into|onto|upon|over|under|as)"
    r"(?![\w'-])",
    re.IGNORECASE,
)
"""English words that name nothing: articles, conjunctions and prepositions."""
_Find = Callable[[Prompt], list[list[int]]]
"""The tokens of some words in a prompt, for each occurrence."""


class Concepts(Protocol):
    """The settings that say which tokens are concepts; see `ConceptUpdate`."""

    @property
    def name(self) -> str:
        """The method's name, for messages."""

    @property
    def tokens(self) -> Any:
        """The concepts."""

    @property
    def per_prompt(self) -> bool:
        """True if there is a list for each prompt."""

    @property
    def maps(self) -> str:
        """Whose maps are read."""

    @property
    def absent(self) -> str:
        """The rule for a word that a prompt lacks."""

    @property
    def encoder(self) -> str:
        """The text encoder or encoders whose columns are read."""

    @property
    def cut(self) -> str | None:
        """The column behind the last token."""


def columns_of(spec: Concepts, run: Run) -> list[Columns]:
    """Each sample's columns.

    Raises:
        ValueError: Tokens don't fit the prompts; the message shows what the prompt's tokens are.
    """
    parts = [p for p in run.text if spec.encoder == "both" or p.encoder == spec.encoder]
    parts = parts or list(run.text)[:1]
    lists: Any = [spec.tokens]
    if spec.per_prompt:
        lists = [one if isinstance(one, tuple) else (one,) for one in spec.tokens]
        if run.samples % len(lists):
            raise ValueError(
                f"{spec.name}: tokens are of {len(lists)} prompts, but the pipeline makes "
                f"{run.samples} samples"
            )
    each = run.samples // len(lists)
    return [_columns(spec, parts, sample, lists[sample // each]) for sample in range(run.samples)]


def _columns(spec: Concepts, parts: Sequence[Part], sample: int, wanted: Any) -> Columns:
    inner = [column for part in parts for column in _inner(spec, part, sample)]
    place = {column: i for i, column in enumerate(inner)}
    concepts: list[tuple[int, ...]] = []
    found = _concepts(spec, parts, sample, wanted)
    for columns in found if spec.maps == "concepts" else _others(spec, parts, sample, found):
        for column in columns:
            if column not in place:
                span = f"{inner[0]} to {inner[-1]}" if inner else "it has none"
                raise ValueError(
                    f"{spec.name}: column {column} isn't one of the prompt's own "
                    f"({span}){_tokens(parts, sample)}"
                )
        concepts.append(tuple(place[column] for column in columns))
    return Columns(tuple(inner), tuple(concepts))


def _inner(spec: Concepts, part: Part, sample: int) -> range:
    """The columns of a part that compete for attention."""
    clip = part.encoder == "clip"
    first = part.columns.start + clip
    cut = spec.cut or ("last" if clip and not part.pads_apart else "eos")
    if cut == "last":
        return range(first, part.columns.stop - 1)
    if part.prompts is None:
        raise ValueError(
            f"{spec.name}: where the prompt ends isn't known, because {part.unread}; give "
            'cut="last"'
        )
    return range(first, part.columns.start + part.prompts[sample].end)


def _concepts(spec: Concepts, parts: Sequence[Part], sample: int, wanted: Any) -> list[list[int]]:
    """The columns of each concept of a sample."""
    if wanted == "auto":
        return _occurrences(spec, parts, sample, _nouns, "nouns")
    found: list[list[int]] = []
    for concept in wanted:
        if not isinstance(concept, str):
            found.append([concept] if isinstance(concept, int) else list(concept))
            continue
        columns = _occurrences(spec, parts, sample, methodcaller("find", concept), concept)
        if not columns and spec.absent == "raise":
            raise ValueError(
                f"{spec.name}: {concept!r} isn't in the prompt{_tokens(parts, sample)}"
            )
        found += columns
    return found


def _others(
    spec: Concepts, parts: Sequence[Part], sample: int, concepts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """In each concept's place a word that names nothing: drawn, but the same ones each time."""
    kind = "words that name nothing"
    found = _occurrences(spec, parts, sample, _nameless, kind)
    taken = {column for columns in concepts for column in columns}
    left = [columns for columns in found if not taken & set(columns)]
    if len(left) < len(concepts) and spec.absent == "raise":
        raise ValueError(
            f'{spec.name}: maps="others" needs {len(concepts)} {kind} (articles, conjunctions, '
            f"prepositions), and the prompt has {len(left)}{_tokens(parts, sample)}"
        )
    draw = random.Random("; ".join(p.prompts[sample].text for p in parts if p.prompts))
    drawn = draw.sample(range(len(left)), min(len(concepts), len(left)))
    return [left[number] for number in sorted(drawn)]


def _nouns(prompt: Prompt) -> list[list[int]]:
    return [prompt.at(*span) for span in noun_spans(prompt.text)]


def _nameless(prompt: Prompt) -> list[list[int]]:
    return [prompt.at(*word.span()) for word in _NAMELESS.finditer(prompt.text)]


def _occurrences(
    spec: Concepts, parts: Sequence[Part], sample: int, find: _Find, said: str
) -> list[list[int]]:
    """The columns, in all parts, of every occurrence of some words.

    Args:
        spec: The settings.
        parts: The parts of the text stream.
        sample: Number of the sample.
        find: Finds the words.
        said: What they are, for messages.
    """
    each = []
    for part in parts:
        if part.prompts is None:
            raise ValueError(
                f"{spec.name}: which columns hold which words isn't known, because {part.unread}; "
                "give tokens as column numbers"
            )
        found = find(part.prompts[sample])
        each.append([[part.columns.start + i for i in tokens] for tokens in found if tokens])
    if len({len(found) for found in each}) > 1:
        raise ValueError(
            f"{spec.name}: the prompts of this model's text encoders differ in how often they say "
            f'{said!r}; choose encoder="clip" or "t5"'
        )
    return [[c for columns in one for c in columns] for one in zip(*each, strict=True)]


def _tokens(parts: Sequence[Part], sample: int) -> str:
    """The tokens of a sample's prompt, for messages."""
    listed = [part.prompts[sample].listed() for part in parts if part.prompts is not None]
    return f"; its tokens are {'; '.join(listed)}" if listed else ""
