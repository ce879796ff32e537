"""Similarity of two pictures: SSIM, PSNR and LPIPS.

Better means more alike. Where the reference is the unedited picture, that only says how far a
method moved it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from regaze.evals.pictures.scorers.base import Images, Ready, Score, Scorer, register, require
from regaze.evals.task import Counts
from regaze.hooks.checks import check_choice


@register
@dataclass(frozen=True)
class Ssim(Scorer):
    """Structural similarity, 1 for equal pictures (Wang et al. 2004), as scikit-image computes it.

    Gaussian weights of sigma 1.5 and population variances, as in the paper; channels averaged.
    Other implementations differ in the third digit.
    """

    name: ClassVar[str] = "ssim"
    summary: ClassVar[str] = "structural similarity to the reference, by scikit-image"
    paper: ClassVar[str] = "10.1109/TIP.2003.819861"
    directions: ClassVar = {"ssim": 1}
    compares: ClassVar[bool] = True

    def load(self, device: str) -> Ready:
        """Import scikit-image."""
        metrics = require("skimage.metrics", "scikit-image")

        def ssim(image: NDArray[np.float64], reference: NDArray[np.float64]) -> Counts:
            value = metrics.structural_similarity(
                image,
                reference,
                data_range=1.0,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            return {"ssim": float(value)}

        return Ready(_each(ssim), self.identity("scikit-image"))


@register
@dataclass(frozen=True)
class Psnr(Scorer):
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error of values in [0, 1].

    The mean over the pictures; undefined (infinite) where a picture equals its reference.
    """

    name: ClassVar[str] = "psnr"
    summary: ClassVar[str] = "peak signal-to-noise ratio to the reference, in dB"
    paper: ClassVar[str] = "none"
    directions: ClassVar = {"psnr": 1}
    absolute: ClassVar = ("psnr",)
    compares: ClassVar[bool] = True

    def load(self, device: str) -> Ready:
        """Return the scorer, which needs nothing loaded."""

        def psnr(image: NDArray[np.float64], reference: NDArray[np.float64]) -> Counts:
            error = float(np.mean((image - reference) ** 2))
            return {"psnr": -10 * math.log10(error) if error else math.nan}

        return Ready(_each(psnr), self.identity("regaze", "numpy"))


@register
@dataclass(frozen=True)
class Lpips(Scorer):
    """Perceptual distance, 0 for equal pictures (arXiv 1801.03924), by the authors' package.

    Attributes:
        net: The backbone; their numbers can't be compared. ``alex`` is the authors' choice for
            scores, ``vgg`` for training, ``squeeze`` that of PIE-Bench.
    """

    name: ClassVar[str] = "lpips"
    summary: ClassVar[str] = "perceptual distance to the reference"
    paper: ClassVar[str] = "arXiv 1801.03924"
    directions: ClassVar = {"lpips": -1}
    compares: ClassVar[bool] = True

    net: str = "alex"

    def load(self, device: str) -> Ready:
        """Load the backbone (torchvision's weights) and the linear heads (in the package)."""
        check_choice("lpips", "net", self.net, ("alex", "vgg", "squeeze"))
        lpips = require("lpips", "lpips")
        try:
            model = lpips.LPIPS(net=self.net, verbose=False).to(device).eval()
        except OSError as error:
            raise ValueError(
                f"lpips: torchvision's weights of {self.net} can't be had ({error}); put their "
                "file into torch's hub cache, ~/.cache/torch/hub/checkpoints"
            ) from error

        @torch.no_grad()
        def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
            found: list[Counts] = []
            for image, reference in zip(images, references, strict=True):
                _check_size(image, reference)
                distance = model(_tensor(image, device), _tensor(reference, device))
                found.append({"lpips": float(distance)})
            return found

        return Ready(score, self.identity("lpips", "torchvision"))


def _each(compare: Callable[[NDArray[np.float64], NDArray[np.float64]], Counts]) -> Score:
    def score(images: Images, prompts: Sequence[str], references: Images) -> list[Counts]:
        return [
            compare(*_arrays(image, reference))
            for image, reference in zip(images, references, strict=True)
        ]

    return score


def _arrays(
    image: Image.Image, reference: Image.Image
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values in [0, 1], "rows columns channels"."""
    _check_size(image, reference)
    first, second = (np.asarray(x.convert("RGB"), np.float64) / 255 for x in (image, reference))
    return first, second


def _check_size(image: Image.Image, reference: Image.Image) -> None:
    if image.size != reference.size:
        raise ValueError(
            f"a picture of {image.width} x {image.height} can't be compared with a reference of "
            f"{reference.width} x {reference.height}: make them in the same size"
        )


def _tensor(image: Image.Image, device: str) -> torch.Tensor:
    """Values in [-1, 1], "1 channels rows columns"."""
    values = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None].to(device)
