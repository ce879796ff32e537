"""The conditions a run compares: the model unedited and with interventions, and its images."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from regaze.hooks.checks import check_choice
from regaze.interventions import Intervention, parse

Shown = Literal["given", "wrong", "blank"]
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Condition:
    """Interventions to run the model with, and what to show it.

    Attributes:
        specs: In the order in which they act; none: the model as it is.
        image: ``given``: the item's image; ``wrong``: that of another item, see `other_images`;
            ``blank``: grey, of the same size. The last two are controls: what is left of a score
            then doesn't come from the image.
    """

    specs: tuple[Intervention, ...] = ()
    image: Shown = "given"

    def __post_init__(self) -> None:
        check_choice("condition", "image", self.image, get_args(Shown))

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``none``, ``var``, ``vhr:alpha=2``, ``var+pai``, ``vcd@preset`` or ``none@blank``.

        Raises:
            ValueError: An unknown method, preset, field or image, with the nearest names.
        """
        methods, shown = _split(text)
        return cls(tuple(parse(part) for part in methods), shown)

    def check_given(self) -> None:
        """Check, before a model is loaded, that methods have the fields that all models need.

        Raises:
            ValueError: One lacks a field; the message names it.
        """
        for spec in self.specs:
            spec.check_given()

    @property
    def label(self) -> str:
        """The form that `parse` reads: the specs' labels joined by a plus, then the image."""
        methods = "+".join(spec.label for spec in self.specs) or "none"
        return methods if self.image == "given" else f"{methods}@{self.image}"


def methods_in(text: str) -> tuple[tuple[str, ...], Shown]:
    """The names of a condition's methods and the image it shows; nothing is looked up."""
    methods, shown = _split(text)
    return tuple(re.split("[:@]", part.strip())[0] for part in methods), shown


def _split(text: str) -> tuple[list[str], Shown]:
    """A condition's methods as `parse` of each one reads them, and its image."""
    bare = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), text)
    at = bare.rfind("@")
    methods, image = (text[:at], text[at + 1 :]) if at >= 0 else ("", text)
    shown: Shown = image.strip()  # type: ignore[assignment]
    if shown not in get_args(Shown) and methods.strip() != "none":
        methods, shown = text, "given"
    if methods.strip() == "none":
        return [], shown
    # A plus before a digit belongs to a number such as 1e+2.
    cuts = [found.start() for found in re.finditer(r"\+(?=\s*[a-z])", bare[: len(methods)])]
    pairs = zip([-1, *cuts], [*cuts, len(methods)], strict=True)
    return [methods[before + 1 : after] for before, after in pairs], shown


def baseline_first(conditions: Sequence[Condition]) -> list[Condition]:
    """The unedited model and then what it is compared with, in the order given.

    Raises:
        ValueError: A condition is named twice.
    """
    labels = [condition.label for condition in conditions]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"given twice: {', '.join(sorted(twice))}; name each condition once")
    baseline = Condition()
    return [baseline, *(condition for condition in conditions if condition != baseline)]


def other_images(keys: Iterable[str]) -> Mapping[str, str]:
    """Another image for every one, each taken once; the same for the same keys in any order.

    Raises:
        ValueError: There is only one image.
    """
    ring = sorted(set(keys))
    if len(ring) < 2:
        raise ValueError("showing the wrong image takes at least two images, this run has one")
    random.Random(0).shuffle(ring)
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def blank(image: Image.Image) -> Image.Image:
    """A grey image of the same size."""
    return Image.new("RGB", image.size, _GREY)
