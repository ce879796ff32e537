"""Prompts of the painting world, read and written: ``"a red circle and a blue square"``.

A prompt names one to three objects, a colour and a shape each, and for two objects may say how
they lie to each other, or what must not be there: ``"a blue square without a red circle"``.
Everything a prompt leaves open (places, sizes) is up to the picture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from regaze.evals.sandbox import drawing
from regaze.evals.sandbox.known import nearest

COLOURS = {name: drawing.COLOURS[name] for name in ("red", "green", "blue", "yellow", "white")}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left of", "right of", "above", "below")
"""Positions of the first of two objects to the second."""
WORDS = (
    *("a", ",", "and"),
    *dict.fromkeys(word for relation in RELATIONS for word in relation.split()),
    *COLOURS,
    *SHAPES,
)
"""Every word that the painters know."""
WITHOUT = " without "
"""The word before the object that must not be there. No painter has heard of the word."""
MAX_OBJECTS = 3

_OBJECT = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@dataclass(frozen=True, order=True)
class Kind:
    """The words of a prompt for one object."""

    colour: str
    shape: str

    def __str__(self) -> str:
        """Colour and shape, e.g. ``"red circle"``."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Wanted:
    """The wishes of a prompt.

    Attributes:
        kinds: One to three, all different, in the prompt's order.
        relation: The first object's position to the second, one of ``RELATIONS``; or None.
        unwanted: The object that must not be there; with it, one object less may be wanted.
    """

    kinds: tuple[Kind, ...]
    relation: str | None = None
    unwanted: Kind | None = None

    @property
    def prompt(self) -> str:
        """The prompt."""
        said = _listed(self.kinds, self.relation)
        return said if self.unwanted is None else f"{said}{WITHOUT}a {self.unwanted}"

    @property
    def asked(self) -> str:
        """A painter's prompt, which as text encoders do takes "without" for "and"."""
        if self.unwanted is None:
            return self.prompt
        return _listed((*self.kinds, self.unwanted), self.relation)

    @property
    def negative(self) -> str:
        """The negative prompt, or an empty one."""
        return "" if self.unwanted is None else f"a {self.unwanted}"


def _listed(kinds: Sequence[Kind], relation: str | None = None) -> str:
    *firsts, last = (f"a {kind}" for kind in kinds)
    return f"{', '.join(firsts)} {relation or 'and'} {last}" if firsts else last


def parse(prompt: str) -> Wanted:
    """The wishes of a prompt; the inverse of `Wanted.prompt`.

    Raises:
        ValueError: The prompt isn't one of this world.
    """
    kinds = tuple(Kind(*found) for found in _OBJECT.findall(prompt.lower()))
    relation = next((r for r in RELATIONS if f" {r} " in prompt.lower()), None)
    if kinds and len(kinds) <= MAX_OBJECTS and len(set(kinds)) == len(kinds):
        negated = len(kinds) > 1 and WITHOUT in prompt.lower()
        wanted = Wanted(kinds[:-1], relation, kinds[-1]) if negated else Wanted(kinds, relation)
        if wanted.prompt == prompt.lower().rstrip("."):
            return wanted
    said = prompt.lower().replace(WITHOUT, " ", 1)
    unknown = [word for word in re.findall(r"\w+", said) if word not in WORDS]
    if unknown:
        near = nearest(unknown[0], WORDS)
        raise ValueError(
            f"prompt {prompt!r} has the unknown word {unknown[0]!r}: the painters know "
            f"{', '.join(WORDS)}; nearest is {near!r}"
        )
    raise ValueError(
        f"prompt {prompt!r} can't be checked: ask for one to {MAX_OBJECTS} objects, all different, "
        "as in 'a red circle, a blue square and a white cross', 'a red circle left of a blue "
        "square' or 'a blue square without a red circle'"
    )
