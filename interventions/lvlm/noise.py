"""Noise on a model's pixels, before they are cut into patches (VCD).

    x' = sqrt(abar_t) x + sqrt(1 - abar_t) eps,    abar_t = product of (1 - beta_k), k = 0 ... t
    beta_k = sigmoid(u_k) (0.005 - 1e-5) + 1e-5,   u = 1000 points from -6 to 6

x are normalised pixels. Reference code DAMO-NLP-SG/VCD@d6568ff (vcd_add_noise.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

STEPS = 1000


def factors(step: int) -> tuple[float, float]:
    """The factors of the picture and of the noise at a step, 0 to 999."""
    betas = (
        torch.linspace(-6, 6, STEPS, dtype=torch.float32, device="cpu").sigmoid() * (0.005 - 1e-5)
        + 1e-5
    )
    share = (1 - betas).cumprod(0)[step]
    return float(share.sqrt()), float((1 - share).sqrt())


def add_noise(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Normalised pixels with noise, of the pixels' shape, float32."""
    of_picture, of_noise = factors(step)
    return of_picture * pixels.float() + of_noise * noise


def noised(given: Mapping[str, Any], config: Any, step: int, seed: int) -> dict[str, Any]:
    """A model's arguments with noise on their pixels.

    Each picture (tile, frame) has a draw of its own, which depends on the seed and the picture
    alone: not on the batch it is in.

    Args:
        given: The arguments.
        config: The model's config.
        step: The step of the noise schedule: the later, the more noise.
        seed: Seed of the noise.

    Raises:
        ValueError: There are no pixels among the arguments.
    """
    found = dict(given)
    names = [n for n, v in given.items() if "pixel_values" in n and _is_float(v)]
    if not names:
        raise ValueError(
            "vcd puts noise on pixels, and the model was given none (pixel_values); give it the "
            "picture, not its features"
        )
    for name in names:
        new = given[name].detach().to(torch.float32, copy=True)
        for one in _pictures(name, new, given, config):
            one.copy_(add_noise(one, _draw(one, seed, "video" not in name), step))
        found[name] = new.to(given[name].dtype)
    return found


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _pictures(name: str, pixels: Tensor, given: Mapping[str, Any], config: Any) -> Iterator[Tensor]:
    """Each picture's pixels, as views: "... H W", or "N C T P P" where patches lie in a row."""
    grids = given.get("video_grid_thw" if "video" in name else "image_grid_thw")
    if pixels.ndim == 2 and isinstance(grids, Tensor):
        vision = config.vision_config
        times, side = vision.temporal_patch_size, vision.patch_size
        patches = pixels.view(len(pixels), -1, times, side, side)
        yield from patches.split(grids.prod(1).tolist())
        return
    sizes = given.get("image_sizes")
    if pixels.ndim == 4 and isinstance(sizes, Tensor) and len(sizes) == len(pixels):
        # Filled up to the largest picture of the batch.
        for one, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            yield one[:, :height, :width]
        return
    yield from pixels.flatten(0, -4) if pixels.ndim > 3 else pixels


def _draw(pixels: Tensor, seed: int, still: bool) -> Tensor:
    content = pixels.detach().cpu().contiguous().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(content, seed))
    shape = list(pixels.shape)
    if pixels.ndim == 5 and still:
        # A picture is there twice, as two moments of a clip: one draw, or they would average.
        shape[2] = 1
    return (
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        .to(pixels.device)
        .expand_as(pixels)
    )
