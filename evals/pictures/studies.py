"""Which methods are measured on which painter, prompts and guidance, and the settings to try."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regaze.evals.sandbox.painting import PAINTERS
from regaze.evals.sandbox.painting.prompts import COLOURS, SHAPES
from regaze.evals.sandbox.painting.scenes import KINDS, NEGATION
from regaze.interventions import NAG, SLG, TPG, Intervention, Reweight, StructuredDiffusion

Grid = Sequence[Intervention]

_PHRASES = tuple(f"a {kind}" for kind in KINDS)


@dataclass(frozen=True)
class Study:
    """Some methods on one painter.

    Attributes:
        name: Short; its folder.
        model: The painter.
        subset: Of the painting world's prompts.
        guidance: Scale of classifier-free guidance; 1 is none.
        grids: By what a reader calls it, the settings of a method that are tried; its defaults
            come first where they can act.
        about: What is asked, for readers.
    """

    name: str
    model: str
    subset: str
    guidance: float
    grids: Mapping[str, Grid] = field(default_factory=dict)
    about: str = ""


def _nag() -> Grid:
    return [
        NAG(phi=phi, alpha=alpha) for phi, alpha in itertools.product((4.0, 2.0, 8.0), (0.25, 0.5))
    ]


def _slg(blocks: int) -> Grid:
    every = [SLG(scale=1.0, layers=(block,), stop=1.0) for block in range(blocks)]
    return [*every, SLG(layers=(1,)), SLG(layers=(3,)), SLG(scale=0.5, layers=(1, 3), stop=1.0)]


def _tpg() -> Grid:
    places = ("down_blocks.1", "down_blocks.0", "mid", "up_blocks.0", "up_blocks.1")
    return [TPG(), *(TPG(scale=1.0, layers=(place,)) for place in places)]


def _words(words: Sequence[str], strengths: Sequence[float], how: str) -> Grid:
    return [Reweight({word: strength for word in words}, how, "skip") for strength in strengths]


def _reweight(how: str) -> Grid:
    nouns, both = tuple(SHAPES), (*COLOURS, *SHAPES)
    return [*_words(nouns, (1.5, 2.5), how), *_words(both, (1.5, 2.5), how)]


def _structured() -> Grid:
    return [StructuredDiffusion(_PHRASES, "skip", keys) for keys in ("prompt", "phrases", "pairs")]


def _study(model: str, subset: str, guidance: float, **grids: Grid) -> Study:
    name = f"{model.removeprefix('painter-')}-{subset}-{guidance:g}"
    return Study(name, model, subset, guidance, grids)


STUDIES = (
    *(_study(model, NEGATION, g, nag=_nag()) for model in PAINTERS for g in (1, 3)),
    *(
        _study("painter-mmdit", "composition", g, slg=_slg(6), reweight=_reweight("logits"))
        for g in (1, 3)
    ),
    *(
        _study(
            "painter-unet", "composition", g, tpg=_tpg(), reweight=_reweight("values"),
            structured_diffusion=_structured(),
        )
        for g in (1, 3)
    ),
)  # fmt: skip
"""All of them, in the order of the page."""
