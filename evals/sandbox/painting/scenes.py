"""Pictures with exact ground truth, and the prompts of each split.

A picture is the LVLM sandbox's drawing at half its size: upright shapes on plain dark grey. Four
colour-shape pairs never occur in training, nor does a share of the combinations of the others;
the validation and test prompts ask for those.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from PIL import Image

from regaze.evals.sandbox import drawing
from regaze.evals.sandbox.drawing import Object, shape_mask
from regaze.evals.sandbox.known import check_known, check_scene
from regaze.evals.sandbox.painting import NEGATION, SUBSETS
from regaze.evals.sandbox.painting.prompts import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Kind,
    Wanted,
)

SIZE = drawing.SIZE // 2
"""Width and height of a picture, in pixels. Objects keep the drawing's own 64 x 64 coordinates."""
BACKGROUND = (40, 40, 44)
SPLITS = ("train", "validation", "test")

HELD_OUT = frozenset(
    {
        Kind("green", "circle"),
        Kind("red", "square"),
        Kind("white", "triangle"),
        Kind("blue", "cross"),
    }
)
"""Never drawn in training; every colour and every shape is, with others."""
KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)

P_RELATION = 0.4
"""Share of training prompts that say how their two objects lie, if they clearly lie so."""

_COUNTS = (1, 2, 2, 3, 3)
_SMALLEST, _LARGEST = 9.0, 13.0
_SAME_COLOUR_GAP = 3.0
"""Drawn units that keep objects of one colour apart: they could not be told from one."""
_SCALE = 2


@dataclass(frozen=True)
class Scene:
    """One picture and all that is in it.

    Attributes:
        key: Split and index, e.g. ``"train/00012"``.
        objects: In the prompt's order, in 64 x 64 coordinates.
        wanted: The objects that its prompt names.
    """

    key: str
    objects: tuple[Object, ...]
    wanted: Wanted

    @cached_property
    def image(self) -> Image.Image:
        """RGB, 32 x 32; drawn on first use."""
        return paint(self.objects)


def paint(objects: Sequence[Object]) -> Image.Image:
    """Draws objects: RGB, 32 x 32, antialiased."""
    side = drawing.SIZE * _SCALE
    image = Image.new("RGB", (side, side), BACKGROUND)
    for item in objects:
        image.paste(COLOURS[item.colour], mask=shape_mask(item, _SCALE))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def scene(split: str, index: int) -> Scene:
    """The scene of that number: combinations of kinds are the split's own.

    Raises:
        ValueError: Unknown split or negative index.
    """
    check_scene(split, index, SPLITS)
    key = f"{split}/{index:05d}"
    rng = random.Random(f"painting/{key}")
    kinds = list(rng.choice(combinations(split, rng.choice(_COUNTS))))
    rng.shuffle(kinds)
    objects = _place(kinds, rng)
    relation = relation_of(objects[0], objects[1]) if len(objects) == 2 else None
    if rng.random() >= P_RELATION:
        relation = None
    return Scene(key, objects, Wanted(tuple(kinds), relation))


def right_picture(want: Wanted, seed: int = 0) -> Scene:
    """A scene that is as a prompt wants it, also where training scenes never are."""
    rng = random.Random(f"painting/right/{want.prompt}/{seed}")
    while True:
        objects = _place(want.kinds, rng)
        if want.relation in (None, relation_of(objects[0], objects[-1])):
            return Scene(f"right/{seed:05d}", objects, want)


def wanted(split: str, subset: str, count: int) -> list[Wanted]:
    """The first prompts of a subset, e.g. ``wanted("test", "composition", 200)``.

    ``composition`` takes turns: three objects that training never showed together; three, one of a
    held-out kind; two of one colour; three, two of which share the colour; three, two of which
    share the shape. Training scenes never repeat a colour or a shape. ``negation`` takes turns,
    too: one of two objects is wanted, or two of three. Training may have shown them together: to
    paint them isn't what is asked.

    Raises:
        ValueError: Unknown split or subset, or the training split, which has scenes instead.
    """
    check_known("split of prompts", split, SPLITS[1:])
    check_known("subset", subset, (*SUBSETS, NEGATION))
    return [_want(split, subset, index) for index in range(count)]


def _want(split: str, subset: str, index: int) -> Wanted:
    rng = random.Random(f"painting/{split}/{subset}/{index:05d}")
    if subset == "single":
        return Wanted((rng.choice(KINDS),))
    if subset == NEGATION:
        sets = _halves(split, 2 + index % 2)
        *kinds, unwanted = rng.sample(rng.choice(sets), 2 + index % 2)
        return Wanted(tuple(kinds), unwanted=unwanted)
    if subset == "composition":
        kinds = list(rng.choice(_hard(split, index % 5)))
    else:
        kinds = list(rng.choice(combinations(split, 2)))
    rng.shuffle(kinds)
    relation = rng.choice(RELATIONS) if subset == "relation" else None
    return Wanted(tuple(kinds), relation)


@cache
def combinations(split: str, count: int) -> tuple[tuple[Kind, ...], ...]:
    """A split's sets of ``count`` kinds with colours and shapes all different, none held out.

    One object alone has nothing to be combined with: those 16 are the same in every split.
    """
    seen = [kind for kind in KINDS if kind not in HELD_OUT]
    sets = _sets(seen, count, count, count)
    return tuple(s for s in sets if count == 1 or _split_of(s) == split)


@cache
def _halves(split: str, count: int) -> tuple[tuple[Kind, ...], ...]:
    """A half for each split of all sets of ``count`` kinds, as `combinations` makes them."""
    seen = [kind for kind in KINDS if kind not in HELD_OUT]
    return tuple(s for s in _sets(seen, count, count, count) if _half_of(s) == split)


@cache
def _hard(split: str, turn: int) -> tuple[tuple[Kind, ...], ...]:
    """Sets of kinds that no training scene shows, but for the first turn half for each split."""
    if turn == 0:
        return combinations(split, 3)
    if turn == 1:
        sets = [s for s in _sets(KINDS, 3, 3, 3) if len(HELD_OUT & set(s)) == 1]
    else:
        count, colours, shapes = ((2, 1, 2), (3, 2, 3), (3, 3, 2))[turn - 2]
        seen = [kind for kind in KINDS if kind not in HELD_OUT]
        sets = _sets(seen, count, colours, shapes)
    return tuple(s for s in sets if _half_of(s) == split)


def _sets(kinds: Sequence[Kind], count: int, colours: int, shapes: int) -> list[tuple[Kind, ...]]:
    """Sets of ``count`` kinds with so many different colours and shapes."""
    sets = itertools.combinations(kinds, count)
    return [
        s
        for s in sets
        if (len({k.colour for k in s}), len({k.shape for k in s})) == (colours, shapes)
    ]


def _draw(kinds: Sequence[Kind]) -> int:
    """A number that depends on nothing but the set: `hash` differs from run to run."""
    return zlib.crc32(", ".join(sorted(map(str, kinds))).encode())


def _split_of(kinds: Sequence[Kind]) -> str:
    tenth = _draw(kinds) % 10
    return "validation" if tenth < 2 else "test" if tenth < 4 else "train"


def _half_of(kinds: Sequence[Kind]) -> str:
    return SPLITS[1 + _draw(kinds) % 2]


def relation_of(a: Object, b: Object) -> str | None:
    """The position of ``a`` to ``b``: the relation, or None if they lie too diagonally to say."""
    dx, dy = b.cx - a.cx, b.cy - a.cy
    if abs(dx) > 1.3 * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > 1.3 * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def _place(kinds: Sequence[Kind], rng: random.Random) -> tuple[Object, ...]:
    """Gives every kind a free place; circles that hold the shapes may touch.

    Radii shrink until all fit.
    """
    largest = _LARGEST
    while True:
        placed: list[Object] = []
        for kind in kinds:
            for _ in range(20):
                r = rng.uniform(min(largest, 10.0), largest)
                cx, cy = (rng.uniform(r + 1, drawing.SIZE - r - 1) for _ in range(2))
                gaps = (_SAME_COLOUR_GAP * (kind.colour == o.colour) for o in placed)
                if all(
                    math.hypot(cx - o.cx, cy - o.cy) > r + o.r + gap
                    for o, gap in zip(placed, gaps, strict=True)
                ):
                    placed.append(Object(kind.shape, kind.colour, cx, cy, r, 0.0))
                    break
        if len(placed) == len(kinds):
            return tuple(placed)
        largest = max(_SMALLEST, largest - 0.25)
