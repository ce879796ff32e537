"""PIE-Bench's metrics of an edit: structure, background, text.

cure-lab/PnPInversion@07f97f4, evaluation/matrics_calculator.py. There both pictures are multiplied
by the background's mask and compared over the *whole* frame, where edited pixels are equal zeros:
PSNR, MSE and SSIM are diluted by the edited area's share. `PieScore` has these as ``psnr``, ``mse``
and ``ssim``, and over the background's pixels alone as ``background_psnr``, ``background_mse`` and
``background_ssim``. LPIPS and CLIP are the scorers ``lpips:net=squeeze`` and ``clip`` of
`regaze.evals.pictures.scorers`, on `masked` pictures. `regaze.evals.edits.pie_bench` runs it all.

The structure distance (Tumanyan et al., arXiv 2201.00424) compares how a picture's patches resemble
each other: cosines between the keys of DINO ViT-B/8's last layer. There the pictures go in as 0 to
255, normalised by ImageNet's means of 0 to 1; ``parity=False`` divides by 255 first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

UNITS = {"structure": 1e3, "lpips": 1e3, "mse": 1e4, "background_mse": 1e4}
"""Factors of the tables; SSIM's is 100."""

_SIDE, _LONGEST = 224, 480
_SIGMA = 1.5
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PieScore:
    """Measures of an edit; NaN where the mask leaves nothing to measure.

    Attributes:
        psnr: PSNR of the background, diluted, in dB; infinite for equal backgrounds.
        mse: Mean squared error of the background, diluted, of values from 0 to 1.
        ssim: Likeness of the background, diluted.
        background_psnr: Over the background's pixels alone.
        background_mse: Likewise.
        background_ssim: The mean of the map of SSIM over them.
    """

    psnr: float
    mse: float
    ssim: float
    background_psnr: float
    background_mse: float
    background_ssim: float


def decode_mask(pairs: Sequence[int], side: int = 512) -> Mask:
    """The mask of an entry of ``mapping_file.json``, "side side".

    Args:
        pairs: Start and length of each run, one after the other, row by row.
        side: The picture's side. Its outermost pixels count as edited, as in the code.

    Raises:
        ValueError: Numbers that are no pairs, or a run that isn't inside.
    """
    if len(pairs) % 2:
        raise ValueError(f"a mask's runs are pairs of start and length, got {len(pairs)} numbers")
    flat = np.zeros(side * side, bool)
    for start, length in zip(pairs[::2], pairs[1::2], strict=True):
        if start < 0 or length < 0 or start + length > flat.size:
            raise ValueError(
                f"a run of {length} pixels from {start} on isn't inside {side} x {side}: the mask "
                "is of another size"
            )
        flat[start : start + length] = True
    mask = flat.reshape(side, side)
    mask[[0, -1], :] = True
    mask[:, [0, -1]] = True
    return mask


def background(source: Image.Image, edited: Image.Image, mask: Mask) -> PieScore:
    """Differences of a background from its source's.

    Args:
        source: RGB.
        edited: RGB, as large.
        mask: "H W", what is edited.

    Raises:
        ValueError: Sizes differ.
    """
    one, two = _pair(source, edited, mask)
    keep = ~mask
    if not keep.any():
        return PieScore(*[math.nan] * 6)
    shown = [picture * keep[..., None] for picture in (one, two)]
    diluted = float(np.mean((shown[0] - shown[1]) ** 2))
    alone = float(np.mean((one - two)[keep] ** 2))
    return PieScore(
        _psnr(diluted), diluted, float(_ssim(*shown).mean()),
        _psnr(alone), alone, float(_ssim(one, two)[keep].mean()),
    )  # fmt: skip


def masked(picture: Image.Image, mask: Mask) -> Image.Image:
    """A picture that is black outside of a mask "H W", as LPIPS and CLIP see it there."""
    return Image.fromarray(np.asarray(picture.convert("RGB")) * mask[..., None].astype(np.uint8))


def _pair(source: Image.Image, edited: Image.Image, mask: Mask) -> tuple[Floats, Floats]:
    if source.size != edited.size or mask.shape != source.size[::-1]:
        raise ValueError(
            f"a picture of {source.width} x {source.height}, its edit of {edited.width} x "
            f"{edited.height} and a mask of {mask.shape[1]} x {mask.shape[0]} differ in size"
        )
    one, two = (np.asarray(x.convert("RGB"), np.float64) / 255 for x in (source, edited))
    return one, two


def _psnr(error: float) -> float:
    return -10 * math.log10(error) if error else math.inf


def _ssim(one: Floats, two: Floats) -> Floats:
    """The map of SSIM, its channels' mean: Gaussian windows of sigma 1.5, 11 pixels wide.

    Wang et al. 2004, K1 = 0.01 and K2 = 0.03, as torchmetrics and scikit-image have it.
    """

    def blurred(x: Floats) -> Floats:
        found: Floats = ndimage.gaussian_filter(x, (_SIGMA, _SIGMA, 0), truncate=3.5)
        return found

    mean, other = blurred(one), blurred(two)
    square, other_square = blurred(one * one) - mean**2, blurred(two * two) - other**2
    both = blurred(one * two) - mean * other
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean * other + c1) * (2 * both + c2)
    scale = (mean**2 + other**2 + c1) * (square + other_square + c2)
    averaged: Floats = (likeness / scale).mean(-1)
    return averaged


# -- structure ---------------------------------------------------------------------------------


def self_similarity(keys: Tensor) -> Tensor:
    """Cosines between tokens, "N N", of keys "N D", all heads in one."""
    lengths = keys.norm(dim=1, keepdim=True)
    cosines: Tensor = keys @ keys.T / (lengths @ lengths.T).clamp(min=1e-8)
    return cosines


def structure_distance(
    keys_of: Callable[[Tensor], Tensor],
    source: Image.Image,
    edited: Image.Image,
    *,
    parity: bool = True,
) -> float:
    """Distance of an edit's structure from its source's.

    Args:
        keys_of: From a picture "1 3 H W" to the keys of the last layer "N D"; `dino_keys` gives
            DINO's.
        source: RGB.
        edited: RGB.
        parity: Let values be 0 to 255 where 0 to 1 was meant, as in the code.
    """
    one, two = (self_similarity(keys_of(_prepared(x, parity))).double() for x in (source, edited))
    if one.shape != two.shape:
        raise ValueError("pictures of different proportions have structures that can't be compared")
    return float(F.mse_loss(two, one))


def _prepared(picture: Image.Image, parity: bool) -> Tensor:
    values = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float()
    values = values if parity else values / 255
    rows, columns = values.shape[-2:]
    scale = min(_SIDE / min(rows, columns), _LONGEST / max(rows, columns))
    size = (int(rows * scale), int(columns * scale))
    sized = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (_MEAN, _STD))
    prepared: Tensor = (sized - mean) / std
    return prepared


def dino_keys(folder: str | Path, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """The keys of the last layer of a DINO model, its class token's among them.

    Args:
        folder: Folder of a vision transformer in transformers' form, such as
            ``facebook/dino-vitb8``, the benchmark's.
        device: The device to compute on.

    Raises:
        ValueError: It can't be loaded, or is no such transformer.
    """
    from transformers import ViTModel

    try:
        model: Any = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"structure distance: {folder} can't be loaded: {error}") from None
    model = model.to(device).eval()
    layers = getattr(model, "layers", None) or model.encoder.layer
    attention = layers[-1].attention
    key = getattr(getattr(attention, "attention", attention), "key", None)
    key = key if key is not None else attention.k_proj
    found: list[Tensor] = []
    key.register_forward_hook(lambda module, args, output: found.append(output))

    @torch.no_grad()
    def keys(picture: Tensor) -> Tensor:
        found.clear()
        model(picture.to(device), interpolate_pos_encoding=True)
        return found[-1][0].cpu()

    return keys
