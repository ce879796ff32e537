"""Things and their places in the painting world: compositions and regions, with exact truth.

Of a composition a picture with one object is given, and a picture of another object, its mask and
the box where it goes. The object is drawn in the world's own way ("same"), or as the grey outline
that a pencil leaves ("sketch"), which pasting wouldn't turn into what the prompt says. Of "regions"
each of two or three boxes is to hold its object, and nothing else is given.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from regaze.evals.edits.world import STILL, grown, silhouette
from regaze.evals.sandbox import drawing
from regaze.evals.sandbox.drawing import Object, shape_mask
from regaze.evals.sandbox.painting.detector import Blob, detect
from regaze.evals.sandbox.painting.prompts import Kind, Wanted
from regaze.evals.sandbox.painting.scenes import SIZE, combinations, paint, right_picture
from regaze.hooks.checks import check_choice

KINDS = ("same", "sketch", "regions")
_PENCIL = (165, 165, 165)
_STROKE = 3
"""Width of a pencil's line, in the drawing's units."""
_HALVES = (
    ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)),
    ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)),
)
_QUARTERS = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0))

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Thing:
    """An object that is put into a picture.

    Attributes:
        background: The picture.
        picture: A picture with the thing in its middle.
        mask: The mask of the thing in its picture, "H W".
        region: Mask of the thing's place, "H W": its whole box.
        outline: Mask of the thing's own pixels at its place, "H W".
    """

    background: Image.Image
    picture: Image.Image
    mask: Mask
    region: Mask
    outline: Mask


@dataclass(frozen=True)
class Placement:
    """Objects and the boxes that they go into.

    Attributes:
        key: Split, kind and number.
        kind: One of `KINDS`.
        wanted: The prompt's objects; in a composition the placed one comes last.
        boxes: Boxes of the last objects of the prompt, in shares of the picture.
        thing: The object that a composition places.
    """

    key: str
    kind: str
    wanted: Wanted
    boxes: tuple[Box, ...]
    thing: Thing | None = None

    @property
    def placed(self) -> list[tuple[Kind, Box]]:
        """The objects that have a box."""
        return list(zip(self.wanted.kinds[-len(self.boxes) :], self.boxes, strict=True))


def placement(split: str, kind: str, number: int) -> Placement:
    """The placement of that number.

    Raises:
        ValueError: An unknown split or kind.
    """
    check_choice("places", "split", split, ("validation", "test"))
    check_choice("places", "kind", kind, KINDS)
    key = f"{split}/{kind}/{number:04d}"
    rng = random.Random(f"places/{key}")
    if kind == "regions":
        count = rng.choice((2, 3))
        boxes = rng.choice(_HALVES) if count == 2 else tuple(rng.sample(_QUARTERS, 3))
        kinds = list(rng.choice(combinations(split, count)))
        rng.shuffle(kinds)
        return Placement(key, kind, Wanted(tuple(kinds)), boxes)
    # Both styles get the same scenes.
    rng = random.Random(f"places/{split}/composition/{number:04d}")
    kinds = list(rng.choice(combinations(split, 2)))
    rng.shuffle(kinds)
    wanted = Wanted(tuple(kinds))
    while True:
        ground, item = right_picture(wanted, rng.randrange(2**31)).objects
        rows, columns = (np.flatnonzero(_pixels(item).any(axis)) for axis in (1, 0))
        region = np.zeros((SIZE, SIZE), bool)
        region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        if not (grown(region, 2) & _pixels(ground)).any():
            break
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    middle = Object(item.shape, item.colour, drawing.SIZE / 2, drawing.SIZE / 2, item.r, 0.0)
    picture = paint([middle]) if kind == "same" else _sketched(middle)
    thing = Thing(paint([ground]), picture, _pixels(middle), region, _pixels(item))
    shares = tuple(float(n) / SIZE for n in box)
    return Placement(key, kind, wanted, ((shares[0], shares[1], shares[2], shares[3]),), thing)


def _pixels(item: Object) -> Mask:
    """The pixels that an object covers, "H W"."""
    drawn = shape_mask(item, 2).resize((SIZE, SIZE), Image.Resampling.BOX)
    found: Mask = np.asarray(drawn) >= 128
    return found


def _sketched(item: Object) -> Image.Image:
    """An object's outline in pencil."""
    scale = 2
    whole = np.asarray(shape_mask(item, scale)) > 0
    inner = ndimage.binary_erosion(whole, np.ones((3, 3)), iterations=_STROKE * scale // 2)
    line = Image.fromarray((255 * (whole & ~inner)).astype(np.uint8))
    image = paint([]).resize(line.size)
    image.paste(_PENCIL, mask=line)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


class Verdict(NamedTuple):
    """A picture, held against a placement.

    Attributes:
        found: Number of objects with a box that are anywhere in the picture.
        placed: Number of objects whose centre is in their box.
        kept: True if the background's object is where it was; true without a background.
        clean: True if there is nothing else.
        background: Root of the mean squared difference to the background outside of the box, in
            grey levels of 255; a pixel beside the box isn't counted.
        outline: Overlap of the thing's outline with its picture's, intersection over union; 0 if it
            isn't placed.
    """

    found: int
    placed: int
    kept: bool
    clean: bool
    background: float
    outline: float


def judge(picture: Image.Image, asked: Placement) -> Verdict:
    """Judge a picture.

    Args:
        picture: RGB, 32 x 32.
        asked: The placement that it was painted for.

    Raises:
        ValueError: It is of another size.
    """
    blobs = detect(picture)
    at = [[b for b in _of(blobs, kind) if _inside(b, box)] for kind, box in asked.placed]
    found = sum(bool(_of(blobs, kind)) for kind, _ in asked.placed)
    placed = sum(map(bool, at))
    clean = len(blobs) <= len(asked.wanted.kinds)
    thing = asked.thing
    if thing is None:
        return Verdict(found, placed, True, clean, 0.0, 0.0)
    (stood,) = detect(thing.background)
    same = _of(blobs, asked.wanted.kinds[0])
    kept = any(np.hypot(b.x - stood.x, b.y - stood.y) <= STILL for b in same)
    still = ~grown(thing.region, 1)
    one, two = (np.asarray(x, np.float64)[still] for x in (picture, thing.background))
    outline = 0.0
    if at[0]:
        own = silhouette(picture, at[0][0])
        outline = float((own & thing.outline).sum() / (own | thing.outline).sum())
    away = float(np.sqrt(np.mean((one - two) ** 2)))
    return Verdict(found, placed, kept, clean, away, outline)


def _of(blobs: list[Blob], kind: Kind) -> list[Blob]:
    return [blob for blob in blobs if (blob.colour, blob.shape) == (kind.colour, kind.shape)]


def _inside(blob: Blob, box: Box) -> bool:
    left, top, right, bottom = (n * SIZE for n in box)
    return left <= blob.x < right and top <= blob.y < bottom


def pasted(asked: Placement) -> Image.Image:
    """A composition's thing pasted into its background, pixel by pixel.

    Raises:
        ValueError: There is none.
    """
    thing = asked.thing
    if thing is None:
        raise ValueError("regions have nothing to paste")
    from regaze.interventions.diffusion.arranging import arrange
    from regaze.interventions.diffusion.places import stored

    (box,) = asked.boxes
    made = arrange("paste", thing.background, thing.picture, stored(thing.mask), box, (SIZE, SIZE))
    return made.pasted
