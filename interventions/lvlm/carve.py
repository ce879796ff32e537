"""CARVE: find what a question is about by contrast with a general question, and look closer.

Attention is read here, not edited. With A_q and A_g the last row's attention to the image's
patches, averaged over heads, when the model answers the question and when it describes the image:

    S = sum_t w_t sum_l  A_q[t, l] / (A_g[t, l] + lambda)

S is resized to the picture; its highest pixels form regions; all but the strongest regions are
blackened, the picture is cropped to what is left, magnified and asked about again.

arXiv 2509.06461; reference code YuyaoGe/CARVE@a1f0442. The paper asks again about the refined
image alone and calls the number of regions an upper bound; the code shows the original too and
takes it as a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]
Steps = Literal["first", "last", "all"]
Rule = Literal["attention", "size", "drop_small"]

LAMBDA = 1e-8


def contrast(
    query: NDArray[np.floating],
    general: NDArray[np.floating],
    steps: Steps = "all",
    lam: float = LAMBDA,
) -> Map:
    """Contrast of two runs' attention to the patches, fused over layers and generated tokens.

    Args:
        query: "T L N": last row's attention while answering the question, mean over heads.
        general: "T' L N": the same for the general question; the longer run is cut.
        steps: Tokens that count: the first, the last, or all with weight 1 for the first, 2 for the
            second and so on.
        lam: Keeps the quotient finite.

    Returns:
        "N".
    """
    length = min(len(query), len(general))
    ratio = query[:length].astype(np.float64) / (general[:length].astype(np.float64) + lam)
    weights = np.arange(1.0, length + 1)
    if steps != "all":
        weights = np.eye(length)[0 if steps == "first" else -1]
    fused: Map = weights @ ratio.sum(1)
    return fused


def to_pixels(patches: Map, size: tuple[int, int]) -> Map:
    """A map over patches, "rows cols", as one over pixels, bilinear.

    Args:
        patches: "rows cols".
        size: Width and height.
    """
    # Resizing is linear, so resizing the sum over layers and steps is resizing each and summing.
    image = Image.fromarray(patches.astype(np.float32), mode="F")
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float64)


def strongest(
    pixels: Map,
    top: float = 0.2,
    rule: Rule = "attention",
    at_least: int = 3,
    share: float = 0.2,
    at_most: int | None = None,
    smallest: float = 0.001,
) -> Mask:
    """The regions to keep: connected pixels (by their sides) among the highest.

    Args:
        pixels: "height width".
        top: Share of the pixels that count as high.
        rule: Rank regions by their summed contrast or their size; or only drop the small ones.
        at_least: Regions kept in any case, if there are so many.
        share: Share of the regions that is kept where that is more than ``at_least``.
        at_most: Upper bound, which the paper names K; None for none, as in the code.
        smallest: What counts as small under ``drop_small``: a share of the high pixels.

    Returns:
        "height width".

    Raises:
        ValueError: The map is constant or not finite, so nothing stands out.
    """
    if not np.isfinite(pixels).all() or np.ptp(pixels) == 0:
        raise ValueError(
            "the contrast map is constant or not finite, so no region stands out: choose layers "
            "that look at the image"
        )
    high = pixels >= np.percentile(pixels, 100 * (1 - top))
    labels, n_regions = ndimage.label(high)
    index = np.arange(1, n_regions + 1)
    sizes = ndimage.sum_labels(high, labels, index)
    if rule == "drop_small":
        # Rounded down, as in the code.
        kept = index[sizes >= int(smallest * high.sum())]
    else:
        strength = sizes if rule == "size" else ndimage.sum_labels(pixels, labels, index)
        count = max(at_least, int(share * n_regions))
        kept = index[np.argsort(-strength, kind="stable")[: min(count, at_most or count)]]
    return np.isin(labels, kept)


def magnify(image: Image.Image, mask: Mask) -> Image.Image:
    """The kept pixels on black, cropped to their box and enlarged.

    The crop keeps its shape and grows until both sides reach those of the original.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    masked = Image.fromarray(np.asarray(image.convert("RGB")) * mask[..., None].astype(np.uint8))
    crop = masked.crop(box)
    scale = max(image.width / crop.width, image.height / crop.height)
    size = (int(crop.width * scale), int(crop.height * scale))
    return crop.resize(size, Image.Resampling.LANCZOS)


__all__: Sequence[str] = ["contrast", "magnify", "strongest", "to_pixels"]
