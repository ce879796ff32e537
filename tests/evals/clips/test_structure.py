"""Height fields and normal maps, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from regaze.evals.sandbox.drawing import Object
from regaze.evals.sandbox.painting.scenes import scene
from regaze.evals.sandbox.video.structure import (
    RELIEF,
    estimate,
    heights,
    normals,
    silhouettes,
    structure,
)


def test_normals_of_a_plane() -> None:
    y, x = np.mgrid[:6, :7].astype(np.float64)
    expected = np.array([-0.5, 0.25, 1.0]) / np.linalg.norm([-0.5, 0.25, 1.0])
    found = normals(0.5 * x - 0.25 * y)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-12)
    np.testing.assert_array_equal(normals(np.full((4, 4), 3.0))[..., 2], 1.0)


def test_normals_of_a_dome_point_away_from_its_top() -> None:
    y, x = np.mgrid[-8:9, -8:9].astype(np.float64)
    found = normals(-0.05 * (x**2 + y**2))[1:-1, 1:-1]  # differences are one-sided at the edge
    slope = np.stack([0.1 * x, 0.1 * y, np.ones_like(x)], -1)[1:-1, 1:-1]
    expected = slope / np.linalg.norm(slope, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_normal_map_shows_places_but_no_colours() -> None:
    red = Object("circle", "red", 30.0, 20.0, 11.0, 0.0)
    blue = Object("circle", "blue", 30.0, 20.0, 11.0, 0.0)
    assert structure([red]).tobytes() == structure([blue]).tobytes()
    shown = np.asarray(structure([red]), np.int64)
    ground = np.abs(shown - [128, 128, 255]).max(-1) < 2
    assert not ground[10, 10]
    assert ground[25:].all()
    left, right = shown[10, 15 - 5], shown[10, 15 + 5]
    assert left[0] < 100 < 156 < right[0]


def test_later_objects_hide_earlier_ones() -> None:
    below = Object("square", "red", 32.0, 32.0, 12.0, 0.0)
    above = Object("circle", "blue", 36.0, 32.0, 12.0, 0.0)
    alone, covered = silhouettes([below])[0], silhouettes([below, above])
    assert covered[0].sum() < alone.sum() / 2
    assert covered.sum(0).max() <= 1 + 1e-12
    assert heights(covered).max() <= RELIEF
    assert silhouettes([]).shape == (0, 32, 32)


@pytest.mark.parametrize("index", range(12))
def test_structure_is_found_again_in_drawn_pictures(index: int) -> None:
    shown = scene("train", index)
    given, found = structure(shown.objects), estimate(shown.image)
    error = np.asarray(given, np.float64) - np.asarray(found, np.float64)
    assert np.sqrt(np.mean(error**2)) < 0.5  # of 255
