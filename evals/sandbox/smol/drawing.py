"""Pixels of a scene: backgrounds drawn from a seed, and cut-out pictures pasted onto them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from regaze.evals.sandbox.smol.atlas import Picture

SIZE = 224
"""Side of a scene in pixels."""

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


@dataclass(frozen=True)
class Placed:
    """A picture at its place in a scene.

    Attributes:
        picture: The picture of an object.
        x: Left edge in pixels.
        y: Upper edge in pixels.
        width: In pixels.
        height: In pixels.
        mirrored: True if left and right are exchanged.
        angle: Turn in degrees, counter-clockwise.
        tone: Factors of brightness, colour and contrast.
    """

    picture: Picture
    x: int
    y: int
    width: int
    height: int
    mirrored: bool
    angle: float
    tone: tuple[float, float, float]

    @classmethod
    def draw(cls, picture: Picture, share: float, rng: random.Random) -> Placed:
        """Draws a place for a picture whose longer side takes this share of the scene's."""
        factor = share * SIZE / max(picture.image.size)
        width, height = (max(8, round(side * factor)) for side in picture.image.size)
        return cls(
            picture,
            rng.randint(0, SIZE - width),
            rng.randint(0, SIZE - height),
            width,
            height,
            rng.random() < 0.5,
            rng.uniform(-15, 15) if rng.random() < 0.5 else 0.0,
            (rng.uniform(0.75, 1.25), rng.uniform(0.6, 1.3), rng.uniform(0.8, 1.2)),
        )

    def overlap(self, other: Placed) -> float:
        """Share of the smaller one's box that lies in the other's."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        down = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        smaller = min(self.width * self.height, other.width * other.height)
        return max(0, across) * max(0, down) / smaller

    def rendered(self) -> Image.Image:
        """RGBA picture as it is pasted."""
        image = self.picture.image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.angle:
            image = image.rotate(self.angle, Image.Resampling.BILINEAR)
        alpha = image.getchannel("A")
        colours = image.convert("RGB")
        brightness, colour, contrast = self.tone
        colours = ImageEnhance.Brightness(colours).enhance(brightness)
        colours = ImageEnhance.Color(colours).enhance(colour)
        colours = ImageEnhance.Contrast(colours).enhance(contrast)
        colours.putalpha(alpha)
        return colours


def compose(objects: Sequence[Placed], seed: str) -> tuple[Image.Image, Labels]:
    """Draws a scene.

    Args:
        objects: From back to front.
        seed: Seed of the background.

    Returns:
        RGB image, and ``(224, 224)`` numbers of the objects that its pixels show, -1 for none.
    """
    image = background(seed)
    labels = np.full((SIZE, SIZE), -1, np.int16)
    for number, item in enumerate(objects):
        pasted = item.rendered()
        image.paste(pasted, (item.x, item.y), pasted)
        opaque = np.asarray(pasted.getchannel("A")) > 128
        labels[item.y : item.y + item.height, item.x : item.x + item.width][opaque] = number
    return image, labels


def background(seed: str) -> Image.Image:
    """A drawn background: plain, a gradient, a sky over ground, a room, clouds or a texture."""
    rng = np.random.default_rng(list(seed.encode()))
    style = rng.integers(6)
    if style == 0:
        pixels = np.broadcast_to(_colour(rng), (SIZE, SIZE, 3)).copy()
    elif style == 1:
        pixels = _gradient(rng)
    elif style == 2:
        pixels = _landscape(rng)
    elif style == 3:
        pixels = _room(rng)
    elif style == 4:
        pixels = _mixed(_clouds(rng, 4, 0.55), rng)
    else:
        pixels = _mixed(_clouds(rng, int(rng.integers(16, 64)), 0.9), rng)
    pixels += rng.normal(0, rng.uniform(0, 10), pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(1)) if rng.random() < 0.3 else image


def _colour(rng: np.random.Generator) -> Pixels:
    return rng.uniform(0, 255, 3)


def _mixed(weights: Pixels, rng: np.random.Generator) -> Pixels:
    """Two colours mixed by weights of 0 to 1."""
    first, second = _colour(rng), _colour(rng)
    return first * (1 - weights[..., None]) + second * weights[..., None]


def _gradient(rng: np.random.Generator) -> Pixels:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    along = x * np.cos(angle) + y * np.sin(angle)
    return _mixed(np.clip(along + 0.5, 0, 1), rng)


def _clouds(rng: np.random.Generator, cells: int, fade: float) -> Pixels:
    """Smooth noise of several scales, each twice as fine and ``fade`` as strong, from 0 to 1."""
    total = np.zeros((SIZE, SIZE))
    strength = 1.0
    while cells <= SIZE // 2:
        coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        total += strength * np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        strength *= fade
        cells *= 2
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low))


def _landscape(rng: np.random.Generator) -> Pixels:
    """A sky with clouds over ground of grass, sand, snow or asphalt."""
    horizon = int(rng.uniform(0.3, 0.75) * SIZE)
    blue = np.array([rng.uniform(60, 190), rng.uniform(120, 210), rng.uniform(190, 255)])
    clouds = np.clip(_clouds(rng, 3, 0.55) * 1.8 - 0.8, 0, 1)[..., None]
    pixels = blue * (1 - clouds) + 245 * clouds
    grounds = ((70, 130, 50), (200, 180, 130), (235, 238, 245), (105, 105, 110), (110, 85, 60))
    ground = np.array(grounds[rng.integers(len(grounds))]) + rng.uniform(-20, 20, 3)
    rough = _clouds(rng, 32, 0.9)[..., None] - 0.5
    pixels[horizon:] = (ground + 60 * rough)[horizon:]
    return pixels


def _room(rng: np.random.Generator) -> Pixels:
    """A wall, at times papered in stripes, over a floor of planks or tiles."""
    edge = int(rng.uniform(0.5, 0.8) * SIZE)
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = np.broadcast_to(rng.uniform(120, 250, 3), (SIZE, SIZE, 3)).copy()
    if rng.random() < 0.4:
        width = int(rng.integers(8, 30))
        pixels[(x // width) % 2 == 0] += rng.uniform(-35, 35, 3)
    floor = np.broadcast_to(rng.uniform(50, 200, 3), (SIZE, SIZE, 3)).copy()
    size = int(rng.integers(14, 40))
    across = (x // size) % 2 if rng.random() < 0.5 else 0
    floor[((y // size) + across) % 2 == 0] += rng.uniform(-40, 40, 3)
    floor[y % size == 0] -= 30
    pixels[edge:] = floor[edge:]
    return pixels
