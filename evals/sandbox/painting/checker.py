"""The judge of painted pictures: each prompted object has one of six fates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

from PIL import Image

from regaze.evals.sandbox.painting.detector import Blob, detect
from regaze.evals.sandbox.painting.prompts import Kind, Wanted, parse


@dataclass(frozen=True)
class Counts:
    """Fates of the prompted objects; all are numbers of objects, so they can be added up.

    Each prompted object has one of the first six fates, tried in this order.

    Attributes:
        found: The object is there.
        swapped: The object and another prompted one have each other's colours.
        leaked: The colour is on another prompted object's shape, or the shape in that one's colour.
        malformed: The colour is there in no known shape.
        wrong: The colour is there in a shape that wasn't prompted, or the shape in such a colour.
        missing: Nothing speaks of it: neglect.
        extra: Things that are none of the above; not prompted objects.
        wanted: Prompted objects, the sum of the first six.
        unwanted: Objects that the prompt says must not be there, and are.
    """

    found: int
    swapped: int
    leaked: int
    malformed: int
    wrong: int
    missing: int
    extra: int
    wanted: int
    unwanted: int = 0

    @property
    def right(self) -> bool:
        """True if every prompted object is there and none that must not be, whatever else is."""
        return self.found == self.wanted and not self.unwanted

    @property
    def clean(self) -> bool:
        """True if every prompted object is there and nothing else."""
        return self.right and self.extra == 0

    @property
    def compositional(self) -> bool:
        """True if an object is missing or has another one's colour or shape."""
        return self.swapped + self.leaked + self.missing > 0

    @property
    def score(self) -> float:
        """Objects found over objects wanted, extra or unwanted, 0 to 1."""
        return self.found / (self.wanted + self.extra + self.unwanted)


@dataclass(frozen=True)
class Verdict:
    """One picture, checked.

    Attributes:
        prompt: The prompt that was painted.
        blobs: The objects that are there.
        counts: The agreement of the two, counted.
        related: True if the prompted relation holds; None if there is none, or an object is not
            found.
    """

    prompt: str
    blobs: tuple[Blob, ...]
    counts: Counts
    related: bool | None


def check(images: Sequence[Image.Image], prompts: Sequence[str | Wanted]) -> list[Verdict]:
    """Compares pictures with their prompts.

    Args:
        images: RGB, 32 x 32.
        prompts: One per picture, as text or parsed.

    Raises:
        ValueError: Not one prompt per picture, a prompt that isn't of this world, or a picture of
            another size.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} pictures but {len(prompts)} prompts: give one prompt per picture"
        )
    wanted = [parse(p) if isinstance(p, str) else p for p in prompts]
    return [_check(image, want) for image, want in zip(images, wanted, strict=True)]


def objective(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Scores for a search: objects found over objects wanted or extra, 0 to 1 per picture.

    Raises:
        ValueError: As `check`.
    """
    return [verdict.counts.score for verdict in check(images, prompts)]


def total(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Sums over pictures: every count, and the numbers of pictures of each kind.

    Returns:
        The fields of `Counts`; ``images``; of those the ``right``, ``clean`` and ``compositional``
        ones; and ``related`` among ``relations``, the pictures whose relation can be told.
    """
    counts = [v.counts for v in verdicts]
    sums = {f.name: sum(getattr(c, f.name) for c in counts) for f in fields(Counts)}
    kinds = ("right", "clean", "compositional")
    sums |= {"images": len(counts)} | {k: sum(getattr(c, k) for c in counts) for k in kinds}
    told = [v.related for v in verdicts if v.related is not None]
    return sums | {"relations": len(told), "related": sum(told)}


def _check(image: Image.Image, wanted: Wanted) -> Verdict:
    blobs = tuple(detect(image))
    found: dict[int, Blob] = {}
    left = list(blobs)
    for place, kind in enumerate(wanted.kinds):
        match = next((b for b in left if (b.colour, b.shape) == (kind.colour, kind.shape)), None)
        if match:
            found[place] = match
            left.remove(match)
    unwanted = [
        b
        for b in left
        if wanted.unwanted
        and (b.colour, b.shape) == (wanted.unwanted.colour, wanted.unwanted.shape)
    ]
    left = [b for b in left if b not in unwanted]
    fates = _fates(wanted, found, left) | {"unwanted": len(unwanted)}
    return Verdict(wanted.prompt, blobs, Counts(**fates), _related(wanted, found))


def _fates(wanted: Wanted, found: dict[int, Blob], left: list[Blob]) -> dict[str, int]:
    """Sorts the prompted objects by fate; takes from ``left`` the blobs that explain one."""
    fates = dict.fromkeys((f.name for f in fields(Counts)), 0)
    fates |= {"found": len(found), "wanted": len(wanted.kinds)}
    lost = [kind for place, kind in enumerate(wanted.kinds) if place not in found]
    colours, shapes = {k.colour for k in wanted.kinds}, {k.shape for k in wanted.kinds}

    for one, other in itertools.combinations(tuple(lost), 2):
        crossed = {(one.colour, other.shape), (other.colour, one.shape)}
        swapped = [b for b in left if (b.colour, b.shape) in crossed]
        if {(b.colour, b.shape) for b in swapped} == crossed and {one, other} <= set(lost):
            fates["swapped"] += 2
            lost = [kind for kind in lost if kind not in (one, other)]
            for pair in crossed:
                left.remove(next(b for b in swapped if (b.colour, b.shape) == pair))

    def leaked(blob: Blob, kind: Kind) -> bool:
        if blob.colour == kind.colour:
            return blob.shape in shapes
        return blob.shape == kind.shape and blob.colour in colours

    def malformed(blob: Blob, kind: Kind) -> bool:
        return blob.colour == kind.colour and blob.shape is None

    def wrong(blob: Blob, kind: Kind) -> bool:
        return blob.colour == kind.colour or blob.shape == kind.shape

    for fate in (leaked, malformed, wrong):
        for kind in tuple(lost):
            blob = next((b for b in left if fate(b, kind)), None)
            if blob:
                fates[fate.__name__] += 1
                lost.remove(kind)
                left.remove(blob)
    return fates | {"missing": len(lost), "extra": len(left)}


def _related(wanted: Wanted, found: dict[int, Blob]) -> bool | None:
    if wanted.relation is None or len(found) < 2:
        return None
    dx, dy = found[1].x - found[0].x, found[1].y - found[0].y
    ahead = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[wanted.relation]
    aside = dy if wanted.relation.endswith("of") else dx
    return bool(ahead > abs(aside))
