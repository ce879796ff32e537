"""Estimate a clip's optical flow from its pictures, by OpenCV or by RAFT.

The paper computes flow between consecutive normal maps, which show the same surface in both frames
whatever colours are painted on it (arXiv 2411.15028). Here it is backward, from each frame to the
one before. The opposite flow is computed too: pixels at which the two disagree aren't visible in
the frame before. And where a normal map is flat, as its background is, nothing can be seen to move,
so that estimators let it follow whatever moves beside it; there it is put to rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regaze.hooks.checks import check_choice
from regaze.hooks.diffusion.warp import corners, warp
from regaze.interventions.diffusion.flow import Flow

METHODS = ("dis", "farneback", "raft")

# RAFT compares pictures an eighth as large, on a pyramid of four levels.
_RAFT_MULTIPLE, _RAFT_SMALLEST = 8, 128
_GREY_LEVEL = 1.0

Picture = NDArray[np.uint8]
Pair = Callable[[Picture, Picture], NDArray[np.float32]]
"""Flow "H W 2" from a first picture "H W 3" to a second one, in pixels."""


def estimate(images: Sequence[Image.Image], method: str = "dis", check: bool = True) -> Flow:
    """The backward flow of a clip.

    Args:
        images: Frames of the clip, best their normal maps, all of one size.
        method: "dis" (Kroeger et al., arXiv 1603.03590) or "farneback" by OpenCV, "raft" (Teed and
            Deng, arXiv 2003.12039) by torchvision, which fetches its weights when first used.
        check: Compute the forward flow too, to know which pixels are visible.

    Raises:
        ValueError: A single frame, frames of different sizes, or an unknown method.
        ImportError: The method's library isn't installed.
    """
    check_choice("optical flow", "method", method, METHODS)
    sizes = {image.size for image in images}
    if len(images) < 2 or len(sizes) > 1:
        what = f"{len(images)} frames" if len(sizes) < 2 else f"frames of {len(sizes)} sizes"
        raise ValueError(f"flow needs two frames at least, all of one size; got {what}")
    pair = _raft() if method == "raft" else _opencv(method)
    shown = [np.array(image.convert("RGB")) for image in images]

    def flow(first: Sequence[Picture], second: Sequence[Picture]) -> NDArray[np.float32]:
        return np.stack([at_rest(a, b, pair(a, b)) for a, b in zip(first, second, strict=True)])

    backward = flow(shown[1:], shown[:-1])
    return Flow.checked(backward, flow(shown[:-1], shown[1:])) if check else Flow(backward)


def at_rest(first: Picture, second: Picture, flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """A flow without motion where standing still explains the pictures as well, to a grey level.

    Args:
        first: "H W 3".
        second: "H W 3".
        flow: "H W 2", from the first one to the second one.
    """
    height, width = first.shape[:2]
    one, two = (x.astype(np.float64) for x in (first, second))
    fetched = warp(
        torch.from_numpy(two).reshape(1, height * width, 3),
        corners(torch.from_numpy(flow)[None].double()),
    )
    moved = np.abs(one - fetched.reshape(height, width, 3).numpy()).mean(-1)
    still = np.abs(one - two).mean(-1)
    return np.where((still <= moved + _GREY_LEVEL)[..., None], np.float32(0), flow)


def _opencv(method: str) -> Pair:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"flow by {method} needs OpenCV: pip install 'regaze[video]', or give a flow file"
        ) from error
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) if method == "dis" else None

    def pair(first: Picture, second: Picture) -> NDArray[np.float32]:
        one, two = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (first, second))
        if dis is not None:
            return np.asarray(dis.calc(one, two, None), np.float32)
        # OpenCV's own example: half size per level, 3 levels, windows of 15, polynomials of 5.
        found = cv2.calcOpticalFlowFarneback(one, two, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        return np.asarray(found, np.float32)

    return pair


def _raft() -> Pair:
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except ImportError as error:
        raise ImportError(
            "flow by raft needs torchvision: pip install 'regaze[images]', or give a flow file"
        ) from error
    model = raft_large()
    weights = Raft_Large_Weights.DEFAULT
    # weights_only: a checkpoint must not run code.
    model.load_state_dict(weights.get_state_dict(check_hash=True, weights_only=True))
    return raft_pair(model.eval())


def raft_pair(model: Any) -> Pair:
    """Flow between pictures of any size by a RAFT model, which takes multiples of 8 from 128 on."""

    @torch.inference_mode()
    def pair(first: Picture, second: Picture) -> NDArray[np.float32]:
        height, width = first.shape[:2]
        factor = max(1, _RAFT_SMALLEST / min(height, width))
        sides = [math.ceil(n * factor / _RAFT_MULTIPLE) * _RAFT_MULTIPLE for n in (height, width)]

        def scaled(picture: Picture) -> Tensor:
            x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
            return F.interpolate(x, sides, mode="bilinear", align_corners=False)

        found = model(scaled(first), scaled(second))[-1]
        found = F.interpolate(found, (height, width), mode="bilinear", align_corners=False)[0]
        found *= torch.tensor(
            [width / sides[1], height / sides[0]], dtype=torch.float32, device="cpu"
        )[:, None, None]
        return found.permute(1, 2, 0).numpy()

    return pair
