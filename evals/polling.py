"""Build POPE questions from image annotations: random, popular or adversarial negatives.

The rules are those of POPE (arXiv:2305.10355; RUCAIBox/POPE@3df3ba1, ``main.py`` and ``utils.py``)
with two differences: the draw is seeded, and the article of the question is written correctly (the
original replaces every letter a of its template when an object begins with a vowel).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

Kind = Literal["random", "popular", "adversarial"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Record = dict[str, str | int]

TEMPLATE = "Is there {} in the image?"


class Pair(NamedTuple):
    """Two objects to ask for about an image.

    Attributes:
        image: The image.
        present: The object that is in the image.
        absent: The object that is not.
        ranked: True if the kind's ranking gave the absent one; otherwise it was drawn uniformly.
    """

    image: str
    present: str
    absent: str
    ranked: bool


def build_questions(
    annotations: Mapping[str, Sequence[str]],
    kind: Kind,
    *,
    images: int | None = 500,
    per_image: int = 3,
    seed: int = 0,
    template: str = TEMPLATE,
    counted: Iterable[Sequence[str]] | None = None,
) -> list[Record]:
    """Ask for ``per_image`` objects that are in each image and for as many that are not.

    The same seed draws the same images for every kind, so the kinds share their positives. Ties
    in frequency keep the order of first sight.

    Args:
        annotations: For each image its objects; repeats are ignored, and the first ``per_image``
            are the ones asked for.
        kind: The way to choose absent objects: uniformly, by frequency, or by co-occurrence with
            the object asked for just before. The last two fall back to the first when exhausted.
        images: Number of images to draw from those with at least ``per_image`` objects; ``None``
            takes all of them, in the given order.
        per_image: Questions of each sign per image.
        seed: Seed of the draw of images and of the random objects.
        template: Question with one ``{}`` for the object with its article.
        counted: Images, as lists of objects, over which frequency and co-occurrence are counted,
            e.g. a training set; default: the drawn ones, as POPE does.

    Returns:
        Records with ``question_id`` (from 1), ``image``, ``text``, ``label`` and ``category``, as
        in the published question files; yes and no alternate.

    Raises:
        ValueError: Unknown kind, fewer usable images than asked for, or too few objects in all to
            find absent ones for each image.
    """
    asked = (
        (pair.image, name, label)
        for pair in draw_objects(
            annotations, kind, images=images, per_image=per_image, seed=seed, counted=counted
        )
        for name, label in ((pair.present, "yes"), (pair.absent, "no"))
    )
    return [
        {
            "question_id": number,
            "image": image,
            "text": template.format(with_article(name)),
            "label": label,
            "category": kind,
        }
        for number, (image, name, label) in enumerate(asked, 1)
    ]


def draw_objects(
    annotations: Mapping[str, Sequence[str]],
    kind: Kind,
    *,
    images: int | None = 500,
    per_image: int = 3,
    seed: int = 0,
    counted: Iterable[Sequence[str]] | None = None,
) -> list[Pair]:
    """The objects that `build_questions` asks for, by the same rules.

    Returns:
        ``per_image`` pairs for each image.

    Raises:
        ValueError: As there.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of negative {kind!r}: choose one of {', '.join(KINDS)}")
    rng = random.Random(seed)
    drawn = _draw(annotations, images, per_image, rng)
    scenes = [list(dict.fromkeys(names)) for names in counted or drawn.values()]
    popular = _by_count(Counter(name for names in scenes for name in names))
    partners = _partners(scenes)

    found = []
    for image, present in drawn.items():
        used = set(present)
        for positive in present[:per_image]:
            ranking: Sequence[str] = ()
            if kind == "popular":
                ranking = popular
            elif kind == "adversarial":
                ranking = partners.get(positive, ())
            ranked = next((name for name in ranking if name not in used), None)
            negative = ranked or _any_absent(popular, used, rng, image)
            used.add(negative)
            found.append(Pair(image, positive, negative, ranked is not None))
    return found


def with_article(name: str) -> str:
    """The name with "an" before a, e, i, o, u and "a" otherwise, as POPE chooses it."""
    return f"an {name}" if name.lower().startswith(tuple("aeiou")) else f"a {name}"


def _draw(
    annotations: Mapping[str, Sequence[str]], images: int | None, per_image: int, rng: random.Random
) -> dict[str, list[str]]:
    unique = {image: list(dict.fromkeys(names)) for image, names in annotations.items()}
    usable = {image: names for image, names in unique.items() if len(names) >= per_image}
    if images is None:
        return usable
    if len(usable) < images:
        raise ValueError(
            f"only {len(usable)} of {len(unique)} images have at least {per_image} objects, "
            f"{images} are asked for: lower `images` or `per_image`"
        )
    return {image: usable[image] for image in rng.sample(list(usable), images)}


def _partners(scenes: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """For each object the others, most frequent companion first."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for present in scenes:
        for name in present:
            counts[name].update(other for other in present if other != name)
    return {name: _by_count(companions) for name, companions in counts.items()}


def _by_count(counts: Counter[str]) -> list[str]:
    return [name for name, _ in counts.most_common()]


def _any_absent(
    vocabulary: Iterable[str], used: Collection[str], rng: random.Random, image: str
) -> str:
    absent = [name for name in vocabulary if name not in used]
    if not absent:
        raise ValueError(
            f"no object is left to ask for that {image} lacks: give more images, or ask fewer "
            "questions about each"
        )
    return rng.choice(absent)
