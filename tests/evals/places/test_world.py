"""Placements of the painting world: what is asked for, and what is seen in pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from regaze.evals.places.world import KINDS, judge, pasted, placement
from regaze.evals.sandbox.drawing import Object
from regaze.evals.sandbox.painting.scenes import paint


def test_placements_are_the_same_every_time_and_other_in_every_split() -> None:
    for kind in KINDS:
        one, again = (placement("test", kind, 3) for _ in range(2))
        assert (one.wanted, one.boxes) == (again.wanted, again.boxes)
        assert one.wanted != placement("validation", kind, 3).wanted
    same, sketch = (placement("test", kind, 5) for kind in ("same", "sketch"))
    assert same.boxes == sketch.boxes


@pytest.mark.parametrize("number", range(8))
def test_pasting_is_a_composition_in_the_worlds_own_style_alone(number: int) -> None:
    asked = placement("test", "same", number)
    seen = judge(pasted(asked), asked)
    assert (seen.placed, seen.kept, seen.clean) == (1, True, True)
    assert seen.background == 0
    assert seen.outline > 0.7  # A blob's fringe counts, a mask's does not.
    asked = placement("test", "sketch", number)
    assert judge(pasted(asked), asked).placed == 0


def test_what_is_wrong_with_a_composition_is_told() -> None:
    asked = placement("test", "same", 0)
    assert asked.thing
    alone = judge(asked.thing.background, asked)
    assert (alone.found, alone.placed, alone.kept, alone.clean) == (0, 0, True, True)
    # A thing of another place is found, and not placed; the background's object is gone.
    ((kind, (left, top, *_)),) = asked.placed
    away = Object(kind.shape, kind.colour, 50.0 if left < 0.5 else 14.0, 14.0, 11.0, 0.0)
    seen = judge(paint([away]), asked)
    assert (seen.found, seen.placed, seen.kept, seen.clean) == (1, 0, False, True)
    assert seen.background > 5


def test_regions_hold_their_objects() -> None:
    for number in range(6):
        asked = placement("test", "regions", number)
        objects = [
            Object(kind.shape, kind.colour, 32 * (left + right), 32 * (top + bottom), 11.0, 0.0)
            for kind, (left, top, right, bottom) in asked.placed
        ]
        seen = judge(paint(objects), asked)
        assert (seen.placed, seen.found, seen.clean) == (len(objects),) * 2 + (True,)
        assert judge(Image.fromarray(np.asarray(paint(objects))[:, ::-1]), asked) != seen
        moved = [objects[0], *objects[1:]]
        moved[0] = Object(objects[0].shape, objects[0].colour, objects[1].cx, objects[1].cy, 11, 0)
        moved[1] = Object(objects[1].shape, objects[1].colour, objects[0].cx, objects[0].cy, 11, 0)
        swapped = judge(paint(moved), asked)
        assert swapped.placed == len(objects) - 2
        assert swapped.found == len(objects)
