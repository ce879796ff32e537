"""The studies of methods: painter, prompts, guidance, and the settings to try."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regaze.evals.sandbox.painting import NEGATION, PAINTERS
from regaze.evals.sandbox.painting.prompts import COLOURS, SHAPES
from regaze.evals.sandbox.painting.scenes import KINDS
from regaze.interventions import (
    NAG,
    SLG,
    TPG,
    Intervention,
    Reweight,
    StructuredDiffusion,
    parse,
)

Grid = Sequence[Intervention]

MMDIT, UNET = "painter-mmdit", "painter-unet"
_PHRASES = tuple(f"a {kind}" for kind in KINDS)
_NOUNS = "tokens=[circle,square,triangle,cross],absent=skip"
_FINE = "layers=[down_blocks.0,up_blocks.1]"

CARDS: Mapping[tuple[str, int], Sequence[str]] = {
    (MMDIT, 1): (
        "pag:scale=2,layers=[1]",
        "seg:scale=1,layers=[5]",
        "softpag:scale=3,u=0.5,heads=L1H1+L3H4+L5H3",
        f"attend_and_excite:{_NOUNS},layers=[5],refine=,step_size=5,stop=1",
        f"a_star:{_NOUNS},layers=[5],step_size=20",
    ),
    (MMDIT, 3): (
        "pag:scale=1",
        "seg:scale=1",
        "softpag:scale=1,u=0.5,heads=L1H1+L3H4+L5H3",
        f"attend_and_excite:{_NOUNS},layers=[5],refine=,step_size=5,stop=1",
        f"a_star:{_NOUNS},layers=[5],step_size=20",
    ),
    (UNET, 1): (
        "pag:scale=1,layers=[up_blocks.1]",
        "softpag:scale=3,u=1,heads=L1H1+L4H1+L6H1",
        f"attend_and_excite:{_NOUNS},{_FINE},refine=,step_size=5,stop=1",
        f"a_star:{_NOUNS},{_FINE},step_size=5",
    ),
    (UNET, 3): (
        "pag:scale=1,layers=[up_blocks.1]",
        f"attend_and_excite:{_NOUNS},{_FINE},refine=,step_size=5,stop=1",
        f"a_star:{_NOUNS},{_FINE},step_size=5",
    ),
}
"""Settings of the painters' cards, which were chosen on validation prompts there."""


@dataclass(frozen=True)
class Study:
    """Some methods on one painter.

    Attributes:
        name: Short; its folder.
        model: The painter.
        subset: Subset of the painting world's prompts.
        guidance: Scale of classifier-free guidance; 1 is none.
        grids: By method, the settings that are tried on validation prompts; a single one isn't.
    """

    name: str
    model: str
    subset: str
    guidance: float
    grids: Mapping[str, Grid] = field(default_factory=dict)


def _nag() -> Grid:
    settings = itertools.product((4.0, 2.0, 8.0), (0.25, 0.5))
    return [NAG(phi=phi, alpha=alpha) for phi, alpha in settings]


def _slg(blocks: int) -> Grid:
    every = [SLG(scale=1.0, layers=(block,), stop=1.0) for block in range(blocks)]
    return [*every, SLG(layers=(1,)), SLG(layers=(3,)), SLG(scale=0.5, layers=(1, 3), stop=1.0)]


def _tpg() -> Grid:
    places = ("down_blocks.1", "down_blocks.0", "mid", "up_blocks.0", "up_blocks.1")
    return [TPG(), *(TPG(scale=1.0, layers=(place,)) for place in places)]


def _reweight(how: str) -> Grid:
    return [
        Reweight({word: strength for word in words}, how, "skip")
        for words in (tuple(SHAPES), (*COLOURS, *SHAPES))
        for strength in (1.5, 2.5)
    ]


def _structured() -> Grid:
    return [StructuredDiffusion(_PHRASES, "skip", keys) for keys in ("prompt", "phrases", "pairs")]


def _study(model: str, subset: str, guidance: int, **grids: Grid) -> Study:
    name = f"{model.removeprefix('painter-')}-{subset}-{guidance}"
    if subset == "composition":
        cards = [parse(label) for label in CARDS[model, guidance]]
        grids |= {spec.name: [spec] for spec in cards}
    return Study(name, model, subset, guidance, grids)


def _compositions(guidance: int) -> tuple[Study, Study]:
    values, logits = _reweight("values"), _reweight("logits")
    structured = _structured()
    return (
        _study(MMDIT, "composition", guidance, slg=_slg(6), reweight=logits),
        _study(
            UNET, "composition", guidance, tpg=_tpg(), reweight=values,
            structured_diffusion=structured,
        ),
    )  # fmt: skip


STUDIES = (
    *(_study(model, NEGATION, guidance, nag=_nag()) for model in PAINTERS for guidance in (1, 3)),
    *(study for guidance in (1, 3) for study in _compositions(guidance)),
)
"""All of them, in the order of the page."""
