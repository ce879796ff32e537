"""Scenes of the sandbox: reproducible, and what is drawn is what the ground truth says."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.sandbox.drawing import COLOURS, SIZE, Object, shape_mask
from regaze.evals.sandbox.scenes import FAVOURITE, PARTNER, SHAPES, SPLITS, Scene, phrases, scene


def test_the_same_number_gives_the_same_scene() -> None:
    first, second = scene("test", 7), scene("test", 7)
    assert first == second
    assert first.image.tobytes() == second.image.tobytes()


def test_the_ground_truth_is_pinned() -> None:
    test = ["white circle", "green moon", "white ring", "blue cross"]
    assert [item.phrase for item in scene("test", 0).objects] == test
    assert [item.phrase for item in scene("train", 0).objects] == ["blue square", "green arrow"]


@pytest.mark.parametrize("split", SPLITS)
def test_phrases_are_those_of_the_scene(split: str) -> None:
    for index in range(20):
        assert phrases(split, index) == [item.phrase for item in scene(split, index).objects]


def test_in_clutter_objects_are_small_and_pieces_lie_about() -> None:
    for split in ("clutter", "clutter-validation"):
        scenes = [scene(split, index) for index in range(100)]
        assert all(2.5 <= item.r <= 4 for s in scenes for item in s.objects)
        assert all(6 <= s.pieces <= 12 for s in scenes)
    usual = [scene("test", index) for index in range(100)]
    assert all(item.r >= 6 for s in usual for item in s.objects)
    assert {s.pieces for s in usual} == {0}


def test_splits_share_no_image() -> None:
    images = [scene(split, index).image.tobytes() for split in SPLITS for index in range(25)]
    assert len(set(images)) == len(images)


def test_an_image_is_rgb_and_64_pixels_wide() -> None:
    image = scene("validation", 3).image
    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))


@pytest.mark.parametrize("split", SPLITS)
def test_objects_lie_apart_and_inside_the_border(split: str) -> None:
    for index in range(100):
        s = scene(split, index)
        left, top, right, bottom = s.content
        assert 1 <= len(s.objects) <= 5
        assert len({item.shape for item in s.objects}) == len(s.objects)
        for item in s.objects:
            assert left <= item.cx - item.r and item.cx + item.r <= right
            assert top <= item.cy - item.r and item.cy + item.r <= bottom
        for a, b in itertools.combinations(s.objects, 2):
            assert math.hypot(a.cx - b.cx, a.cy - b.cy) > a.r + b.r


@pytest.mark.parametrize("shape", SHAPES)
def test_a_silhouette_stays_inside_its_circle(shape: str) -> None:
    item = Object(shape, "red", 31.5, 31.5, 20.0, 0.3)
    y, x = np.nonzero(np.asarray(shape_mask(item)))
    assert np.hypot(x - item.cx, y - item.cy).max() <= item.r + 1


def test_pixels_have_the_colour_of_their_object() -> None:
    seen = [_nearest_colour(s, item) == item.colour for s in _scenes(60) for item in s.objects]
    assert len(seen) > 150
    assert np.mean(seen) > 0.95  # noise and occluders hide some


def _scenes(count: int) -> list[Scene]:
    return [scene("test", index) for index in range(count)]


def _nearest_colour(s: Scene, item: Object) -> str:
    """The colour towards which an object's pixels differ from the bare background."""
    pixels = np.asarray(s.image, dtype=float)
    inside = np.asarray(shape_mask(item)) > 0
    left, top, right, bottom = s.content
    content = np.zeros_like(inside)
    content[top:bottom, left:right] = True
    for other in s.objects:
        content &= ~_disc(other)
    base = np.median(pixels[content], axis=0)
    difference = np.median(pixels[inside], axis=0) - base
    directions = {name: np.array(colour) - base for name, colour in COLOURS.items()}
    return max(directions, key=lambda name: _cosine(difference, directions[name]))


def _disc(item: Object) -> NDArray[np.bool_]:
    y, x = np.mgrid[:SIZE, :SIZE]
    inside: NDArray[np.bool_] = np.hypot(x - item.cx, y - item.cy) < item.r + 1
    return inside


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_the_border_is_dark_and_flat_and_differs_between_scenes() -> None:
    contents = set()
    for s in _scenes(30):
        left, top, right, bottom = s.content
        border = np.ones((SIZE, SIZE), dtype=bool)
        border[top:bottom, left:right] = False
        pixels = np.asarray(s.image, dtype=float)[border]
        assert pixels.mean() < 50
        assert pixels.std() < 4
        contents.add(s.content)
    assert len(contents) > 20


def test_only_two_splits_follow_the_prior() -> None:
    for split in SPLITS:
        scenes = [scene(split, index) for index in range(300)]
        partnered = np.mean([_has_pair(s) for s in scenes])
        favoured = np.mean([o.colour == FAVOURITE[o.shape] for s in scenes for o in s.objects])
        if split in ("train", "test-prior"):
            assert partnered > 0.7
            assert favoured > 0.5
        else:
            assert partnered < 0.6
            assert favoured < 0.25


def _has_pair(s: Scene) -> bool:
    shapes = {item.shape for item in s.objects}
    return any(PARTNER[shape] in shapes for shape in shapes)


def test_an_unknown_split_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="nearest is 'validation'"):
        scene("valid", 0)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        scene("test", -1)


def test_an_image_survives_the_round_trip_through_png(tmp_path: Path) -> None:
    original = scene("test", 0).image
    original.save(tmp_path / "scene.png")
    assert Image.open(tmp_path / "scene.png").tobytes() == original.tobytes()
