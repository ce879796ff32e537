"""What a prompt of the painting world says, and back: ``"a red circle and a blue square"``.

A prompt names one to three objects, a colour and a shape each, and for two objects may say how
they lie to each other. Everything a prompt leaves open (places, sizes) is up to the picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from regaze.evals.sandbox import drawing

COLOURS = {name: drawing.COLOURS[name] for name in ("red", "green", "blue", "yellow", "white")}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left of", "right of", "above", "below")
"""How the first of two objects lies to the second."""
WORDS = (
    *("a", ",", "and"),
    *dict.fromkeys(word for relation in RELATIONS for word in relation.split()),
    *COLOURS,
    *SHAPES,
)
"""Every word of every prompt."""
MAX_OBJECTS = 3

_OBJECT = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@dataclass(frozen=True, order=True)
class Kind:
    """What a prompt says of one object."""

    colour: str
    shape: str

    def __str__(self) -> str:
        """Colour and shape, e.g. ``"red circle"``."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for.

    Attributes:
        kinds: One to three, all different, in the prompt's order.
        relation: How the first of two objects lies to the second; one of ``RELATIONS``, or None.
    """

    kinds: tuple[Kind, ...]
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt."""
        *firsts, last = (f"a {kind}" for kind in self.kinds)
        if not firsts:
            return last
        return f"{', '.join(firsts)} {self.relation or 'and'} {last}"


def parse(prompt: str) -> Wanted:
    """What a prompt asks for; the inverse of `Wanted.prompt`.

    Raises:
        ValueError: The prompt isn't one of this world.
    """
    kinds = tuple(Kind(*found) for found in _OBJECT.findall(prompt.lower()))
    relation = next((r for r in RELATIONS if f" {r} " in prompt.lower()), None)
    if kinds and len(kinds) <= MAX_OBJECTS and len(set(kinds)) == len(kinds):
        wanted = Wanted(kinds, relation)
        if wanted.prompt == prompt.lower().rstrip("."):
            return wanted
    unknown = [word for word in re.findall(r"\w+", prompt.lower()) if word not in WORDS]
    if unknown:
        near = get_close_matches(unknown[0], WORDS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"prompt {prompt!r} has the unknown word {unknown[0]!r}: the painters know "
            f"{', '.join(WORDS)}; nearest is {near!r}"
        )
    raise ValueError(
        f"prompt {prompt!r} can't be checked: ask for one to {MAX_OBJECTS} objects, all different, "
        "as in 'a red circle, a blue square and a white cross' or 'a red circle left of a blue "
        "square'"
    )
