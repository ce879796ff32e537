"""Base of CARVE and ViCrop, which show a model a part of a picture, for the sake of a question.

Attention is read here, not edited; what is edited is the picture. `carve_reading` runs the passes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regaze.hooks.host import Host
from regaze.interventions.base import Intervention
from regaze.interventions.lvlm.carve_regions import Box, Map, Mask


@dataclass(frozen=True, eq=False)
class Look:
    """The part of a picture that a question is about.

    Attributes:
        contrast: "height width": how much each pixel stands out; NaN where the processor cuts the
            picture off.
        mask: "height width": pixels that are kept.
        box: The smallest box that holds them.
        crop: The rest of the picture, cropped and maybe magnified.
        shown: The images of the final query.
    """

    contrast: Map
    mask: Mask
    box: Box
    crop: Image.Image
    shown: tuple[Image.Image, ...]


class Looking(Intervention):
    """A method of the question stage that compares a question with a general one.

    Attributes:
        general: The general question, a field of each method.
    """

    stage: ClassVar[Literal["attention", "question"]] = "question"
    general: str

    def check(self) -> None:
        """Check that the general question is one."""
        if not (isinstance(self.general, str) and self.general.strip()):
            raise ValueError(f"{self.name}: general must be a question, got {self.general!r}")

    @property
    def shares_prefix(self) -> bool:
        """False: each question shows a picture of its own."""
        return False

    @abstractmethod
    def resolve(self, host: Host) -> Looking:
        """Fill in what depends on the model."""

    def bind(self, host: Host) -> Any:
        """Refuse to be attached: the method changes the picture, not attention.

        Raises:
            ValueError: Always; the message says what to call.
        """
        title = type(self).__name__
        raise ValueError(
            f"{title} changes what is shown, not attention, so it can't be attached: call "
            f"regaze.look_closer(model, processor, image, question, {title}(...)), or run "
            f"regaze eval BENCHMARK --with {self.name}"
        )

    def check_question(self, question: str) -> None:
        """Check that a question can stand out from the general one.

        Raises:
            TypeError: It is no text.
            ValueError: It is empty, or the general one.
        """
        if not isinstance(question, str):
            raise TypeError(f"a question is text, got a {type(question).__name__}")
        if not question.strip():
            raise ValueError("the question is empty: ask about something in the picture")
        if question.strip() == self.general.strip():
            raise ValueError(
                f"the question {question.strip()!r} is {type(self).__name__}'s general question, "
                "so nothing can stand out from it: ask about something, or set another one with "
                "general="
            )

    @property
    def extra_prompts(self) -> tuple[str, ...]:
        """The general question."""
        return (self.general,)

    @property
    @abstractmethod
    def reading_layers(self) -> tuple[int, ...]:
        """The layers of a resolved spec whose attention is read."""

    @property
    @abstractmethod
    def reading_tokens(self) -> int:
        """Tokens that are worth generating while reading."""

    @property
    def gradient(self) -> Literal["attention", "pixels"] | None:
        """Name the quantity whose gradient is read, if any; pictures go one at a time then."""
        return None

    def parts(self, image: Image.Image) -> Sequence[Sequence[Image.Image]]:
        """The pictures that are read in a picture's place, in rows; their maps are joined."""
        return ((image,),)

    @abstractmethod
    def look(
        self,
        image: Image.Image,
        query: NDArray[np.floating],
        general: NDArray[np.floating],
        seen: Box | None = None,
    ) -> Look:
        """Chooses what to show by what was read; on a resolved spec.

        Args:
            image: The picture.
            query: "T L rows cols", attention of the answer's tokens to the patches, or what else
                was read of them; see `gradient_reading`.
            general: "T' L rows cols", the same for the general question.
            seen: The part of the picture that the patches cover, see `carve_regions.middle`.

        Raises:
            ValueError: Nothing stands out.
        """
