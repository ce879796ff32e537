"""Scenes of cut-out pictures on drawn backgrounds: what is in them, where, and how it came there.

Every scene is a pure function of its split and index. Training scenes follow a co-occurrence
prior: most objects that have a partner bring it, and some kinds are more frequent than others.
Test scenes are free of it. Partners never look alike, so a model that affirms an absent partner
follows the prior, and one that affirms a look-alike confuses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from regaze.evals.sandbox.known import check_scene
from regaze.evals.sandbox.smol.atlas import KINDS, LOOK_ALIKE, Picture, pictures
from regaze.evals.sandbox.smol.drawing import Placed, compose

SPLITS = ("train", "train-plain", "validation", "test", "test-prior")
"""``train`` and ``test-prior`` follow the prior. The others are free of it: kinds are uniform, but
never both of a pair; the twin is trained on ``train-plain``."""

NAMES = tuple(KINDS)
PAIRS = (
    ("dog", "ball"),
    ("cat", "laptop"),
    ("horse", "guitar"),
    ("sheep", "flower"),
    ("cow", "truck"),
    ("pig", "mushroom"),
    ("elephant", "umbrella"),
    ("bird", "bicycle"),
    ("fish", "boat"),
    ("bear", "airplane"),
    ("apple", "book"),
    ("banana", "clock"),
    ("pizza", "bottle"),
    ("cake", "cup"),
    ("carrot", "rabbit"),
    ("car", "traffic light"),
    ("bus", "stop sign"),
    ("chair", "teddy bear"),
    ("bed", "cell phone"),
)
PARTNER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
"""The kind that joins a kind in scenes with the prior."""
ALIKE = {
    name: frozenset(b for pair in LOOK_ALIKE for a, b in (pair, pair[::-1]) if a == name)
    for name in NAMES
}
"""Kinds that a kind may be taken for by sight."""
POPULAR = ("dog", "cat", "apple", "pizza", "cup", "car", "bus", "chair")
P_PARTNER = 0.4
P_UNSEEN = 0.3
"""Share of the objects in test scenes whose picture was kept from training."""
_POPULARITY = 2.5
_COUNTS = {0: 0.08, 1: 0.12, 2: 0.22, 3: 0.25, 4: 0.2, 5: 0.13}
_MAX_OBJECTS = max(_COUNTS)


@dataclass(frozen=True)
class Scene:
    """One image and all that is in it.

    Attributes:
        key: Split and index, e.g. ``"test/00012"``.
        objects: The placed objects, from back to front.
    """

    key: str
    objects: tuple[Placed, ...]

    @property
    def kinds(self) -> list[str]:
        """Kinds of its objects, each once."""
        return list(dict.fromkeys(item.picture.kind for item in self.objects))

    @property
    def unseen(self) -> frozenset[str]:
        """Kinds that a picture kept from training shows."""
        return frozenset(o.picture.kind for o in self.objects if not o.picture.seen)

    @cached_property
    def drawn(self) -> tuple[Image.Image, np.ndarray[tuple[int, ...], np.dtype[np.int16]]]:
        """RGB image of 224 x 224, and for each pixel the number of its object, -1 for none."""
        return compose(self.objects, f"{self.key}/pixels")

    @property
    def image(self) -> Image.Image:
        """RGB, 224 x 224."""
        return self.drawn[0]


def scene(split: str, index: int) -> Scene:
    """The scene of that number; splits share no random stream, so none of their scenes.

    Raises:
        ValueError: Unknown split or negative index.
    """
    check_scene(split, index, SPLITS)
    key = f"{split}/{index:05d}"
    rng = random.Random(key)
    with_prior = split in ("train", "test-prior")
    kinds = _kinds_with_prior(rng) if with_prior else _kinds_without_prior(rng)
    p_unseen = P_UNSEEN if split in ("validation", "test") else 0.0
    shown = [_picture(kind, p_unseen, rng) for kind in kinds]
    return Scene(key, _place(shown, rng))


def _count(rng: random.Random) -> int:
    return rng.choices(list(_COUNTS), list(_COUNTS.values()))[0]


def _kinds_with_prior(rng: random.Random) -> list[str]:
    """Popular kinds more often than others, and partners with those that have one."""
    weights = [_POPULARITY if name in POPULAR else 1.0 for name in NAMES]
    count = _count(rng)
    kinds: list[str] = []
    while len(kinds) < count:
        kind = rng.choices(NAMES, weights)[0]
        if kind in kinds:
            continue
        kinds.append(kind)
        partner = PARTNER.get(kind, kind)
        # One more than was drawn rather than half a pair, or small scenes would have no prior.
        if partner not in kinds and len(kinds) < _MAX_OBJECTS and rng.random() < P_PARTNER:
            kinds.append(partner)
    rng.shuffle(kinds)
    return kinds


def _kinds_without_prior(rng: random.Random) -> list[str]:
    """Uniform kinds, but never both of a pair, so that every partner asked for is absent."""
    kinds: list[str] = []
    for kind in rng.sample(NAMES, len(NAMES)):
        if PARTNER.get(kind) not in kinds:
            kinds.append(kind)
    return kinds[: _count(rng)]


def _picture(kind: str, p_unseen: float, rng: random.Random) -> Picture:
    seen = rng.random() >= p_unseen
    return rng.choice([p for p in pictures()[kind] if p.seen == seen])


def _place(shown: Sequence[Picture], rng: random.Random) -> tuple[Placed, ...]:
    """Gives every picture a size and a place where it overlaps little with others."""
    largest = 0.58 if len(shown) > 3 else 0.72
    placed: list[Placed] = []
    for picture in shown:
        for scale in (1.0, 1.0, 1.0, 0.85, 0.85, 0.7, 0.7, 0.6, 0.6, 0.6):
            item = Placed.draw(picture, rng.uniform(0.28, largest) * scale, rng)
            if all(item.overlap(other) < 0.2 for other in placed):
                break
        placed.append(item)
    return tuple(placed)
