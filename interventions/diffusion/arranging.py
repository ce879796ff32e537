"""A picture and a thing to put into it, arranged for composition: canvases and masks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from regaze.hooks.checks import reason, shown
from regaze.interventions.diffusion.places import cached, fresh, read_mask, sized

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Arranged:
    """A background, and a thing at its place.

    Attributes:
        background: RGB, of the picture's size.
        reference: The thing at its place, on the background's mean colour.
        pasted: The thing pasted into the background.
        mask: The thing's pixels, "H W" bool.
        region: The box's pixels, "H W" bool.
    """

    background: Image.Image
    reference: Image.Image
    pasted: Image.Image
    mask: Tensor
    region: Tensor


def kept_picture(picture: Any) -> Any:
    """A picture's path: a PIL image or an array is kept in ``$XDG_CACHE_HOME/regaze/pictures``.

    Args:
        picture: A path, a PIL image, or an array "H W C" of bytes.
    """
    if isinstance(picture, (str, Path)):
        return str(picture)
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
            return picture
        picture = Image.fromarray(array)
    data = BytesIO()
    picture.save(data, "png")
    name = hashlib.sha256(data.getvalue()).hexdigest()[:20]
    path = cached("pictures", f"{name}.png")
    if not path.exists():
        fresh(path).write_bytes(data.getvalue())
        fresh(path).replace(path)
    return str(path)


def opened(method: str, what: str, path: str) -> Image.Image:
    """A picture from a file, in RGB or RGBA.

    Raises:
        ValueError: There is none, or it is no picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGBA" if "A" in image.getbands() else "RGB")
    except FileNotFoundError:
        raise ValueError(f"{method}: there is no {what} {shown(path)}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{method}: {what} {shown(path)} is no picture: {reason(error)}") from None


def arrange(
    method: str,
    background: Image.Image,
    thing: Image.Image,
    mask: Any,
    box: Box | None,
    size: tuple[int, int],
) -> Arranged:
    """Put a thing at its place.

    Args:
        method: Name of the method, for messages.
        background: RGB.
        thing: RGB or RGBA.
        mask: The thing's place in its picture, a box or a path; None for where it isn't
            transparent.
        box: Place of the thing in shares of the background: as large as fits, in the middle. None
            leaves it where it is, in a picture of the background's proportions.
        size: Width and height of the picture to make.

    Raises:
        ValueError: Something has other proportions, or there is no thing in the mask.
    """
    ground = background.convert("RGB")
    _check_proportions(method, "the background", ground, size)
    inside = _mask_of(method, thing, mask)
    if not inside.any():
        raise ValueError(f"{method}: the object's mask is empty, so there is nothing to put there")
    ground = ground.resize(size, Image.Resampling.LANCZOS) if ground.size != size else ground
    width, height = size
    if box is None:
        _check_proportions(method, "the object's picture, which has no box,", thing, size)
        shown_, place = thing.convert("RGB").resize(size, Image.Resampling.LANCZOS), (0, 0)
        cut = _resized(inside, size)
    else:
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        left, top, right, bottom = (
            n * side for n, side in zip(box, (width, height) * 2, strict=True)
        )
        times = min((right - left) / (edges[2] - edges[0]), (bottom - top) / (edges[3] - edges[1]))
        new = tuple(max(1, round(times * (edges[i + 2] - edges[i]))) for i in (0, 1))
        shown_ = thing.convert("RGB").crop(edges).resize(new, Image.Resampling.LANCZOS)
        cut = _resized(inside[edges[1] : edges[3], edges[0] : edges[2]], new)
        place = round((left + right - new[0]) / 2), round((top + bottom - new[1]) / 2)
    whole = np.zeros((height, width), bool)
    top_, left_ = max(0, place[1]), max(0, place[0])
    part = whole[top_ : place[1] + cut.shape[0], left_ : place[0] + cut.shape[1]]
    part |= cut[top_ - place[1] :, left_ - place[0] :][: part.shape[0], : part.shape[1]]
    stencil = Image.fromarray((255 * whole).astype(np.uint8))
    on_its_own = Image.new("RGB", size)
    on_its_own.paste(shown_, place)
    mean = tuple(int(n) for n in np.asarray(ground, np.float64).mean((0, 1)).round())
    reference, pasted = Image.new("RGB", size, mean), ground.copy()
    for canvas in (reference, pasted):
        canvas.paste(on_its_own, (0, 0), stencil)
    within = torch.from_numpy(whole)
    region = (
        _bounds(within) if box is None else sized(method, box, (height, width), (height, width))
    )
    return Arranged(ground, reference, pasted, within, region.reshape(height, width) | within)


def _mask_of(method: str, thing: Image.Image, mask: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    width, height = thing.size
    if mask is None:
        if "A" not in thing.getbands():
            raise ValueError(
                f"{method}: where the object is in its picture isn't known: give its mask, or a "
                "picture whose other pixels are transparent"
            )
        return np.asarray(thing.getchannel("A")) >= 128
    found = read_mask(mask)
    if isinstance(found, Tensor) and tuple(found.shape) != (height, width):
        raise ValueError(
            f"{method}: a mask of {found.shape[0]} x {found.shape[1]} (rows x columns) isn't one "
            f"of the object's picture, which has {height} x {width} pixels"
        )
    return sized(method, found, (height, width), (height, width)).reshape(height, width).numpy()


def _resized(
    mask: np.ndarray[Any, np.dtype[np.bool_]], size: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    image = Image.fromarray((255 * mask).astype(np.uint8))
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BOX)) >= 128


def _bounds(mask: Tensor) -> Tensor:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    region = torch.zeros_like(mask)
    region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return region


def _check_proportions(method: str, what: str, image: Image.Image, size: tuple[int, int]) -> None:
    if image.width * size[1] != image.height * size[0]:
        raise ValueError(
            f"{method}: {what} has {image.width} x {image.height} pixels, and the picture to make "
            f"{size[0]} x {size[1]}; crop it to the same proportions"
        )
