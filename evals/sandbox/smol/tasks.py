"""Ground truth for POPE and CHAIR on scenes of cut-out pictures; an object is its kind.

The rules are those of the drawn scenes (`regaze.evals.sandbox.tasks`): one question of each sign
about every scene that shows something, frequency and co-occurrence counted over training scenes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, count, islice

from PIL import Image

from regaze.evals.polling import KINDS, Record, build_questions
from regaze.evals.sandbox.smol.scenes import NAMES, Scene, scene

PREFIX = "smol-"
"""Begins the names of these splits, where those of drawn scenes have none."""
SPLITS = tuple(f"{PREFIX}{split}" for split in ("validation", "test", "test-prior"))
"""Splits whose scenes may be asked about."""
CROWD = 3
"""Fewest objects in a scene that CHAIR asks to describe."""

_COUNTED_SCENES = 2000
# The longest first, or a teddy bear would be a bear.
_KIND = re.compile(rf"\b({'|'.join(sorted(NAMES, key=len, reverse=True))})e?s?\b", re.IGNORECASE)


def find_scene(key: str) -> Scene:
    """The scene of an image key such as ``"smol-test/00012"``.

    Raises:
        ValueError: Not of that form, or an unknown split.
    """
    split, _, index = key.rpartition("/")
    if not (split.startswith(PREFIX) and index.isdecimal()):
        raise ValueError(
            f"image key {key!r} must look like 'smol-test/00012': split, slash, number"
        )
    return scene(split.removeprefix(PREFIX), int(index))


def load_image(key: str) -> Image.Image:
    """The image of a key: RGB, 224 x 224."""
    return _drawn(key).copy()


@lru_cache(maxsize=256)
def _drawn(key: str) -> Image.Image:
    """The same scenes are shown under every condition; each takes 150 kB."""
    return find_scene(key).image


def mentioned(text: str) -> list[str]:
    """The kinds that a text mentions, one entry per mention."""
    return [found.lower() for found in _KIND.findall(text)]


def chair_truth(split: str, n_images: int) -> dict[str, list[str]]:
    """Kinds in the first crowded scenes of a split, by image key."""
    return _truth(split, n_images, CROWD)


def pope_records(split: str, n_images: int, seed: int = 0) -> list[Record]:
    """POPE's question records for all three categories, as for drawn scenes.

    Args:
        split: The split of the scenes.
        n_images: The first so many scenes of the split that show something.
        seed: Seed of the random negatives.

    Returns:
        ``6 * n_images`` records with ``question_id``, ``image``, ``text``, ``label`` and
        ``category``.
    """
    truth = _truth(split, n_images, 1)
    counted = _training_kinds()
    built = (
        build_questions(truth, kind, images=None, per_image=1, seed=seed, counted=counted)
        for kind in KINDS
    )
    return list(chain.from_iterable(built))


def _truth(split: str, n_images: int, at_least: int) -> dict[str, list[str]]:
    keys = (f"{split}/{index:05d}" for index in count())
    scenes = ((key, find_scene(key).kinds) for key in keys)
    return dict(islice(((key, kinds) for key, kinds in scenes if len(kinds) >= at_least), n_images))


@lru_cache(maxsize=1)
def _training_kinds() -> list[list[str]]:
    return [scene("train", index).kinds for index in range(_COUNTED_SCENES)]
