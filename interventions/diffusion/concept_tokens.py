"""From the tokens that a method was given to columns of the text stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.works import Run
from regaze.interventions.diffusion.concept_maps import Columns
from regaze.interventions.diffusion.nouns import noun_spans


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
    for columns in _concepts(spec, parts, sample, wanted):
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
        return _occurrences(spec, parts, sample, None)
    found: list[list[int]] = []
    for concept in wanted:
        if not isinstance(concept, str):
            found.append([concept] if isinstance(concept, int) else list(concept))
            continue
        columns = _occurrences(spec, parts, sample, concept)
        if not columns and spec.absent == "raise":
            raise ValueError(
                f"{spec.name}: {concept!r} isn't in the prompt{_tokens(parts, sample)}"
            )
        found += columns
    return found


def _occurrences(
    spec: Concepts, parts: Sequence[Part], sample: int, words: str | None
) -> list[list[int]]:
    """The columns, in all parts, of every occurrence of some words; of every noun for None."""
    each = []
    for part in parts:
        if part.prompts is None:
            raise ValueError(
                f"{spec.name}: which columns hold which words isn't known, because {part.unread}; "
                "give tokens as column numbers"
            )
        prompt = part.prompts[sample]
        spans = noun_spans(prompt.text) if words is None else None
        found = prompt.find(words) if words else [prompt.at(*span) for span in spans or ()]
        each.append([[part.columns.start + i for i in tokens] for tokens in found if tokens])
    if len({len(found) for found in each}) > 1:
        raise ValueError(
            f"{spec.name}: the prompts of this model's text encoders differ in how often they say "
            f'{words or "nouns"!r}; choose encoder="clip" or "t5"'
        )
    return [[c for columns in one for c in columns] for one in zip(*each, strict=True)]


def _tokens(parts: Sequence[Part], sample: int) -> str:
    """The tokens of a sample's prompt, for messages."""
    listed = [part.prompts[sample].listed() for part in parts if part.prompts is not None]
    return f"; its tokens are {'; '.join(listed)}" if listed else ""
