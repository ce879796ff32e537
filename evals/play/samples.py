"""Something to begin with: questions about drawn scenes, prompts of the painting world."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from regaze.evals.sandbox.painting.scenes import wanted
from regaze.evals.sandbox.scenes import scene

_COUNT = 50
_SPLIT, _SUBSET = "test", "relation"


@dataclass(frozen=True)
class Sample:
    """A question about a picture, or a prompt.

    Attributes:
        prompt: The sample's prompt.
        picture: The picture that is asked about; None for a prompt.
    """

    prompt: str
    picture: Image.Image | None = None


def sample(paints: bool, number: int) -> Sample:
    """The sample of that number, from 0; there is no last one.

    Args:
        paints: True for a prompt, False for a picture with a question.
        number: The sample's number among the scenes or prompts of the test split.
    """
    if paints:
        return Sample(wanted(_SPLIT, _SUBSET, _COUNT)[number % _COUNT].prompt)
    drawn = scene(_SPLIT, number + 5)
    if number % 2 == 0:
        return Sample("Describe the image.", drawn.image)
    return Sample(f"Is there a {drawn.objects[0].phrase} in the image?", drawn.image)
