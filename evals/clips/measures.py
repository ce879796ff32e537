"""Measures of how a clip's frames follow their structure and each other, from arrays alone.

Pictures are float arrays "F H W C" with values from 0 to 1. A backward flow "F-1 H W 2" says where
what a pixel of frame f shows was in frame f - 1: at its own place plus (dx, dy) pixels, x to the
right and y downwards.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from regaze.evals.sandbox.video.warping import Floats, warp

Bools = NDArray[np.bool_]


def rmse(first: Floats, second: Floats) -> float:
    """Root of the mean squared difference over all frames, pixels and channels; 0 is best.

    Between normal maps in [0, 1] it is half the same of the normals' coordinates.
    """
    return math.sqrt(np.mean((first - second) ** 2))


def psnr(first: Floats, second: Floats) -> float:
    """Peak signal-to-noise, ``-20 log10(rmse)`` in dB; higher is better, equal is infinite."""
    error = rmse(first, second)
    return -20 * math.log10(error) if error else math.inf


def warping_error(frames: Floats, flow: NDArray[np.floating], visible: Bools) -> float:
    """Mean absolute difference between a frame and the one before, moved by the true flow.

    ``mean |x_f(p) - x_{f-1}(p + flow_f(p))|`` over channels and the pixels that are visible in
    both; values are in [0, 1], 0 is best. Frames that don't follow the flow pay for it, and so do
    things that change their look on the way.

    Args:
        frames: "F H W C".
        flow: "F-1 H W 2".
        visible: "F-1 H W".

    Returns:
        NaN where nothing is visible.
    """
    error = np.abs(frames[1:] - warp(frames[:-1], flow)).mean(-1)
    return float(error[visible].mean()) if visible.any() else math.nan


def flicker(frames: Floats, still: Bools) -> float:
    """Mean absolute difference between neighbouring frames where nothing moves; 0 is best.

    Args:
        frames: "F H W C".
        still: Pixels that show the same in every frame of the true clip, "H W".

    Returns:
        NaN where there are none, or only one frame.
    """
    error = np.abs(np.diff(frames, axis=0)).mean(-1)[:, still]
    return float(error.mean()) if error.size else math.nan


def colour_drift(frames: Floats, silhouettes: Floats) -> float:
    """Change of objects' colours from frame to frame along their true tracks.

    An object's colour is the mean over its pixels, weighted by its silhouette. The mean over
    objects and neighbouring frames of the mean absolute difference of the channels; 0 is best.

    Args:
        frames: "F H W C".
        silhouettes: "F objects H W", 0 to 1.

    Returns:
        NaN where an object is never seen, or there is only one frame.
    """
    weight = silhouettes.sum((2, 3))
    if len(frames) < 2 or not weight.all():
        return math.nan
    colours = np.einsum("fohw,fhwc->foc", silhouettes, frames) / weight[..., None]
    return float(np.abs(np.diff(colours, axis=0)).mean())
