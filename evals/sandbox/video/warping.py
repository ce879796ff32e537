"""Frames moved by a flow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]


def warp(frames: NDArray[np.floating], flow: NDArray[np.floating]) -> Floats:
    """Frame f - 1 drawn where its parts are in frame f, bilinearly.

    Args:
        frames: All but the last frame, "F-1 H W C".
        flow: Backward flow, "F-1 H W 2", in pixels.

    Returns:
        "F-1 H W C"; what the flow fetches from outside the frame is 0.
    """
    _, height, width, channels = frames.shape
    rows, columns = np.mgrid[:height, :width]
    warped = np.empty(frames.shape)
    for number, (frame, (dx, dy)) in enumerate(zip(frames, np.moveaxis(flow, 3, 1), strict=True)):
        places = [rows + dy, columns + dx]
        for channel in range(channels):
            warped[number, ..., channel] = ndimage.map_coordinates(
                frame[..., channel].astype(np.float64), places, order=1, mode="constant"
            )
    return warped
