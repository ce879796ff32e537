"""Edits in the painting world: one object gets another colour, shape or place, the other stays."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from regaze.evals.sandbox.painting.checker import check
from regaze.evals.sandbox.painting.detector import SOLID, Blob, detect, segment
from regaze.evals.sandbox.painting.prompts import COLOURS, RELATIONS, SHAPES, Kind, Wanted
from regaze.evals.sandbox.painting.scenes import (
    HELD_OUT,
    combinations,
    relation_of,
    right_picture,
)
from regaze.hooks.checks import check_choice

KINDS = ("colour", "shape", "place")
"""Properties of an object that change. A new place is said by the relation to the other object."""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

NEAR = 3.0
"""An edited object is where it was if its centre is within so many pixels; radii are 4.5 to 6.5."""
STILL = 1.5
"""An object that wasn't edited was kept if its centre is within so many pixels."""
_FRINGE = 0.1

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """An edit that is asked for.

    Attributes:
        key: Split, kind and number, e.g. ``"test/colour/0007"``.
        kind: One of `KINDS`.
        source: The picture's description.
        edit: The description of the edited picture.
    """

    key: str
    kind: str
    source: Wanted
    edit: Wanted

    @property
    def object(self) -> Kind:
        """The object that is edited, as the source's prompt says it: always its first object."""
        return self.source.kinds[0]

    @property
    def drawn(self) -> Image.Image:
        """A picture as the source's prompt wants it."""
        return right_picture(self.source, _seed(self.key)).image


def _seed(key: str) -> int:
    return random.Random(f"editing/{key}").randrange(2**31)


def change(split: str, kind: str, number: int) -> Change:
    """The edit of that number: of two objects that the split shows together, the first.

    Raises:
        ValueError: An unknown split or kind.
    """
    check_choice("editing set", "kind", kind, KINDS)
    check_choice("editing set", "split", split, ("validation", "test"))
    key = f"{split}/{kind}/{number:04d}"
    rng = random.Random(f"editing/{key}/prompts")
    kinds = list(rng.choice(combinations(split, 2)))
    rng.shuffle(kinds)
    first, other = kinds
    if kind == "place":
        relation = rng.choice(RELATIONS)
        return Change(
            key, kind, Wanted((first, other), relation), Wanted((first, other), OPPOSITE[relation])
        )
    # Nothing that training never showed, and no colour or shape twice.
    options = [
        new
        for new in (
            [Kind(c, first.shape) for c in COLOURS]
            if kind == "colour"
            else [Kind(first.colour, s) for s in SHAPES]
        )
        if new != first
        and new not in HELD_OUT
        and new.colour != other.colour
        and new.shape != other.shape
    ]
    new = rng.choice(options)
    return Change(key, kind, Wanted((first, other)), Wanted((new, other)))


def free(source: Image.Image, change: Change) -> Mask:
    """The pixels of a picture that an edit may change, "H W".

    Of a new colour those of the object; of a new shape the circle that holds it; of a new place all
    but the other object's.

    Args:
        source: The picture, with the objects that its prompt names.
        change: The edit.

    Raises:
        ValueError: The object isn't there.
    """
    blobs = detect(source)
    if change.kind == "place":
        return ~grown(silhouette(source, _only(blobs, change.source.kinds[1])), 1)
    blob = _only(blobs, change.object)
    own = silhouette(source, blob)
    if change.kind == "colour":
        return own
    rows, columns = np.indices(own.shape) + 0.5
    away = np.hypot(rows - blob.y, columns - blob.x)
    circle: Mask = away <= away[own].max()
    return circle


def silhouette(picture: Image.Image, blob: Blob) -> Mask:
    """The pixels of a blob, fringe included, "H W"."""
    opacity, colour = segment(np.asarray(picture, np.float64))
    own = np.where(colour == list(COLOURS).index(blob.colour), opacity, 0.0)
    labels, _ = ndimage.label(own >= SOLID, np.ones((3, 3)))
    places = np.argwhere(labels)
    nearest = places[np.hypot(*(places + 0.5 - (blob.y, blob.x)).T).argmin()]
    body = labels == labels[tuple(nearest)]
    # Fringes of another colour's pixels may be read as this one's: only those that touch it.
    found: Mask = body | (grown(body, 1) & (opacity >= _FRINGE))
    return found


def grown(mask: Mask, pixels: int) -> Mask:
    """A mask and what is so close to it."""
    found: Mask = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=pixels)
    return found


def _only(blobs: list[Blob], kind: Kind) -> Blob:
    found = _of(blobs, kind)
    if not found:
        raise ValueError(f"the picture shows no {kind}, which is to be edited or kept")
    return found[0]


def _of(blobs: list[Blob], kind: Kind) -> list[Blob]:
    return [blob for blob in blobs if (blob.colour, blob.shape) == (kind.colour, kind.shape)]


class Verdict(NamedTuple):
    """An edited picture beside its source.

    Attributes:
        usable: True if the source shows what its prompt says, and nothing else.
        edited: True if the object is as asked: with its new colour or shape where it was; or where
            the new relation has it.
        kept: True if the other object is where it was.
        clean: True if there is nothing else.
        background: Root of the mean squared difference of pixels that should have stayed, in grey
            levels of 255; a pixel beside what may change isn't counted.
        outline: Intersection over union of both outlines, of a new colour; else None.
    """

    usable: bool
    edited: bool
    kept: bool
    clean: bool
    background: float
    outline: float | None

    @property
    def whole(self) -> bool:
        """True if the edit is as it should be, whatever single pixels are."""
        return self.edited and self.kept and self.clean


def judge(source: Image.Image, edited: Image.Image, asked: Change) -> Verdict:
    """Judge an edit.

    Args:
        source: The picture before: RGB, 32 x 32.
        edited: And after.
        asked: The edit.

    Raises:
        ValueError: A picture is of another size.
    """
    if not usable(source, asked):
        return Verdict(False, False, False, False, 0.0, None)
    before, after = detect(source), detect(edited)
    new, other = asked.edit.kinds
    was, stood = _only(before, asked.object), _only(before, other)
    now = min(_of(after, new), key=lambda blob: _apart(blob, was), default=None)
    stands = min(_of(after, other), key=lambda blob: _apart(blob, stood), default=None)
    done = now is not None and _apart(now, was) <= NEAR
    if asked.kind == "place":
        done = now is not None and _relation(now, stood) == asked.edit.relation
    outline = None
    if asked.kind == "colour":
        # Whatever colour it has, so that an edit that failed isn't one that lost its outline.
        place = grown(silhouette(source, was), 2)
        one, two = (_solid(picture) & place for picture in (source, edited))
        outline = float((one & two).sum() / max(1, (one | two).sum()))
    still = ~grown(free(source, asked), 1)
    first, second = (np.asarray(x, np.float64)[still] for x in (source, edited))
    away = float(np.sqrt(np.mean((first - second) ** 2))) if still.any() else 0.0
    kept = stands is not None and _apart(stands, stood) <= STILL
    return Verdict(True, done, kept, len(after) <= 2, away, outline)


def usable(source: Image.Image, asked: Change) -> bool:
    """True if a picture shows what the source's prompt says, and nothing else."""
    (verdict,) = check([source], [asked.source])
    return verdict.counts.clean and verdict.related is not False


def _solid(picture: Image.Image) -> Mask:
    found: Mask = segment(np.asarray(picture, np.float64))[0] >= SOLID
    return found


def _apart(one: Blob, other: Blob) -> float:
    return float(np.hypot(one.x - other.x, one.y - other.y))


def _relation(one: Blob, other: Blob) -> str | None:
    from regaze.evals.sandbox.drawing import Object

    a, b = (Object("", "", blob.x, blob.y, 0, 0) for blob in (one, other))
    return relation_of(a, b)
