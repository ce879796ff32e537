"""Try scorers out before anything is painted: on one grey picture, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from regaze.evals.pictures.scorers.base import Scorer, Spec
from regaze.evals.pictures.scorers.moving import Moving
from regaze.evals.pictures.scorers.painting import Painting
from regaze.evals.pictures.scorers.sets import SetScorer


def try_out(chosen: Sequence[Spec], prompts: Sequence[str]) -> None:
    """Load scorers once and let go of them; painting may take hours that they would cost.

    Args:
        chosen: The scorers to use.
        prompts: The prompts that will be painted.

    Raises:
        ImportError: A library is missing; the message says what to install.
        ValueError: Weights, references or questions are missing or don't fit.
        OSError: A file can't be read.
    """
    for one in chosen:
        # The painting world's pictures have one size.
        side = 32 if isinstance(one, Painting | Moving) else 256
        picture = Image.new("RGB", (side, side), (128, 128, 128))
        if isinstance(one, SetScorer):
            one.check()
        elif isinstance(one, Scorer):
            one.check(prompts)
            one.load("cpu").score([picture], prompts[:1], [picture])
