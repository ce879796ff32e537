"""Ground truth for POPE and CHAIR on sandbox scenes; an object is its phrase, ``"red circle"``.

Questions follow the rules of RUCAIBox/POPE@3df3ba1 (arXiv:2305.10355) with two departures. POPE
asks three questions of each sign about images with at least three objects; here it is one of each
sign about every scene, so that scenes of all sizes count alike (most of a model's mistakes are made
in the crowded ones). And since in scenes drawn without the prior all objects are equally frequent,
frequency and co-occurrence are counted over scenes of the training split, which is what the
model's prior comes from.

Captions are asked for crowded scenes, where there is something to mistake: about a lone shape a
caption seldom goes wrong.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain, count, islice

from PIL import Image

from regaze.evals.polling import KINDS, Record, build_questions
from regaze.evals.sandbox.scenes import Scene, phrases, scene, scene_key

CROWD = 4
"""Fewest objects in a scene that CHAIR asks to describe."""

_COUNTED_SCENES = 2000


def find_scene(key: str) -> Scene:
    """The scene of an image key such as ``"test/00012"``.

    Raises:
        ValueError: Not of that form, or an unknown split.
    """
    split, _, index = key.rpartition("/")
    if not (split and index.isdecimal()):
        raise ValueError(f"image key {key!r} must look like 'test/00012': split, slash, number")
    return scene(split, int(index))


def load_image(key: str) -> Image.Image:
    """The image of a key: RGB, 64 x 64."""
    return _drawn(key).copy()


@lru_cache(maxsize=2048)
def _drawn(key: str) -> Image.Image:
    """The same scenes are shown under every condition; each takes 12 kB."""
    return find_scene(key).image


def chair_truth(split: str, n_images: int) -> dict[str, list[str]]:
    """Objects of the first crowded scenes of a split, as phrases by image key."""
    return _truth(split, n_images, CROWD)


def pope_records(split: str, n_images: int, seed: int = 0) -> list[Record]:
    """POPE's question records, as its JSON-lines files hold them, for all three categories.

    The positive asks for the first object of an image, in the scene's random order; a negative
    follows, so labels alternate. As in the original files, ids count from 1 in each category, and
    the three categories share their images and positives.

    Args:
        split: The split of the scenes.
        n_images: The first so many scenes of the split.
        seed: Seed of the random negatives.

    Returns:
        ``6 * n_images`` records with ``question_id``, ``image``, ``text``, ``label`` and
        ``category``.
    """
    truth = _truth(split, n_images, 1)
    counted = _training_phrases()
    built = (
        build_questions(truth, kind, images=None, per_image=1, seed=seed, counted=counted)
        for kind in KINDS
    )
    return list(chain.from_iterable(built))


def _truth(split: str, n_images: int, at_least: int) -> dict[str, list[str]]:
    scenes = ((scene_key(split, index), phrases(split, index)) for index in count())
    return dict(islice((s for s in scenes if len(s[1]) >= at_least), n_images))


@lru_cache(maxsize=1)
def _training_phrases() -> list[list[str]]:
    return [phrases("train", index) for index in range(_COUNTED_SCENES)]
