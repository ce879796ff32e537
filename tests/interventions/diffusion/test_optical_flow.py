"""Estimated flow, against motion that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from regaze.interventions.diffusion.optical_flow import at_rest, estimate, raft_pair

SHIFT = (3, -2)


def clip(frames: int = 3) -> list[Image.Image]:
    """A bumpy disc that moves over flat ground by `SHIFT` pixels a frame."""
    y, x = np.mgrid[:64, :80].astype(float)
    shown = []
    for number in range(frames):
        dx, dy = x - 30 - number * SHIFT[0], y - 36 - number * SHIFT[1]
        bumps = np.stack([np.sin(dx / 3), np.cos(dy / 3), np.sin((dx + dy) / 4)], -1)
        disc = ((dx**2 + dy**2) < 18**2)[..., None]
        shown.append(np.where(disc, 128 + 100 * bumps, (128, 128, 255)))
    return [Image.fromarray(one.astype(np.uint8)) for one in shown]


def inside(number: int, radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[:64, :80]
    dx, dy = x - 30 - number * SHIFT[0], y - 36 - number * SHIFT[1]
    return np.asarray(dx**2 + dy**2 < radius**2)


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_opencv_finds_what_moves_and_leaves_flat_ground_at_rest(method: str) -> None:
    pytest.importorskip("cv2", reason="estimating flow needs OpenCV")
    flow = estimate(clip(), method)
    assert flow.backward.shape == (2, 64, 80, 2)
    for number in (1, 2):
        found = flow.backward[number - 1]
        error = np.linalg.norm(found - np.array([-SHIFT[0], -SHIFT[1]], np.float32), axis=-1)
        assert np.median(error[inside(number, 14)]) < 0.5
        away = ~inside(number, 30)
        assert not found[away].any()
        assert flow.visible is not None
        assert flow.visible[number - 1][away].all()
        assert flow.visible[number - 1][inside(number, 12)].mean() > 0.9
    assert estimate(clip(), method, check=False).visible is None


def test_what_looks_the_same_is_at_rest() -> None:
    first, second = (np.asarray(image) for image in clip(2))
    wrong = np.zeros((64, 80, 2), np.float32)
    wrong[...] = SHIFT
    found = at_rest(second, first, -wrong)
    assert np.array_equal(found[inside(1, 14)], -wrong[inside(1, 14)])
    assert not found[~inside(1, 22)].any()


class _Shift(nn.Module):
    """Says that everything moves by two pixels to the right and one up, of its own size."""

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        assert min(first.shape[2:]) >= 128
        assert not any(side % 8 for side in first.shape[2:])
        assert first.abs().max() <= 1
        flow = torch.zeros(len(first), 2, *first.shape[2:])
        flow[:, 0], flow[:, 1] = 2, -1
        return [flow * 9, flow]


@pytest.mark.parametrize("size", [(32, 32), (133, 150), (256, 200)])
def test_raft_sees_sizes_that_it_takes_and_answers_in_the_pictures_own(size: Any) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    flow = raft_pair(_Shift())(picture, picture)
    factor = max(1, 128 / min(size))
    seen = [-(-side * factor // 8) * 8 for side in size]
    want = np.array([2 * size[1] / seen[1], -size[0] / seen[0]], np.float32)
    np.testing.assert_allclose(flow, np.broadcast_to(want, (*size, 2)), rtol=1e-5)


def test_what_cannot_be_estimated_is_said() -> None:
    one, two = clip(2)
    with pytest.raises(ValueError, match="did you mean dis"):
        estimate([one, two], "diss")
    with pytest.raises(ValueError, match="two frames at least, all of one size; got 1 frames"):
        estimate([one])
    with pytest.raises(ValueError, match="got frames of 2 sizes"):
        estimate([one, two.resize((32, 32))])


@pytest.mark.parametrize(("method", "library"), [("dis", "cv2"), ("raft", "torchvision")])
def test_a_missing_library_is_named_with_its_extra(
    method: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'regaze\["):
        estimate(clip(2), method)
