"""Which guidance methods work on which pipelines: the rows and columns of the tests.

Every promise is tested over these methods and the families of tiny pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tiny_pipelines import COLUMNS, FAMILIES, HEIGHT, POOLED, WIDTH, Family, noise
from torch import Tensor

from regaze.interventions import (
    NAG,
    PAG,
    SEG,
    SLG,
    STG,
    TPG,
    ConsistEdit,
    PrimeComposer,
    Regions,
    Reweight,
    SoftPAG,
)
from regaze.interventions.diffusion.guided import Guided

SCALE = 1.5
BLOCKS = ("sd3", "sd35", "flux", "wan", "qwen")
"""Families whose blocks can be left out."""
HEADS = {"L1": [0], "L2": {"0": 0.3, "1": 0.9}}


@dataclass(frozen=True)
class Method:
    """One way to use a method.

    Attributes:
        id: What tests call it.
        acts: A spec that acts on every tiny pipeline, if given the family's layers.
        idle: One of strength zero.
        on_layers: Whether it takes layers.
        families: Those that it acts on.
    """

    id: str
    acts: Guided
    idle: Guided
    on_layers: bool = True
    families: tuple[str, ...] = tuple(FAMILIES)

    def on(self, family: Family) -> Guided:
        """The spec for a family's layers."""
        return replace(self.acts, layers=family.perturb) if self.on_layers else self.acts


UNETS = tuple(name for name, kind in FAMILIES.items() if kind.denoiser == "unet")

METHODS = {
    method.id: method
    for method in (
        Method("pag", PAG(scale=SCALE), PAG(scale=0)),
        Method(
            "pag-image", PAG(scale=SCALE, variant="image"), PAG(scale=0, variant="image"),
        ),
        Method("seg", SEG(scale=SCALE, sigma=1.0), SEG(sigma=0)),
        Method("seg-infinite", SEG(scale=SCALE), SEG(scale=0)),
        Method(
            "softpag-heads", SoftPAG(scale=SCALE, heads=HEADS), SoftPAG(heads={}),
            on_layers=False,
        ),
        Method(
            "softpag-uniform", SoftPAG(scale=SCALE, u=0.6, target="uniform"),
            SoftPAG(u=0, target="uniform"),
        ),
        Method(
            "softpag-query-mean", SoftPAG(scale=SCALE, u=1, target="query_mean"),
            SoftPAG(u=0, target="query_mean"),
        ),
        Method(
            "softpag-temperature", SoftPAG(scale=SCALE, u=0.8, target="temperature", tau=3.0),
            SoftPAG(u=0, target="temperature", tau=3.0),
        ),
        Method("tpg", TPG(scale=SCALE), TPG(scale=0), families=UNETS),
        Method(
            "slg", SLG(scale=SCALE, layers=(1,), start=0.3, stop=1.0), SLG(scale=0, layers=(1,)),
            families=BLOCKS,
        ),
        Method(
            "stg-block", STG(scale=SCALE, layers=(1,)), STG(scale=0, layers=(1,)), families=BLOCKS,
        ),
        Method("stg-attention", STG(SCALE, (1,), skip="attention"), STG(0, (1,), skip="attention")),
        Method("stg-diagonal", STG(SCALE, (1,), skip="diagonal"), STG(0, (1,), skip="diagonal")),
    )
}  # fmt: skip


def composed(rows: int = HEIGHT, columns: int = COLUMNS, **settings: Any) -> PrimeComposer:
    """A composition of given latents, each part of it in another share of three steps."""
    names = {"background": 11, "object": 12, "pasted": 13}
    latents = {name: noise(4, 4, rows, columns, seed=seed) for name, seed in names.items()}
    thing = [[1 < row < 6 and 0 < column < 4 for column in range(columns)] for row in range(rows)]
    fields: dict[str, Any] = {
        "latents": latents, "mask": thing, "box": (0.0, 0.1, 0.8, 0.9), "subject": (1, 3),
        "correlate": 0.4, "paste": 0.2, "keep": 0.6,
    }  # fmt: skip
    return PrimeComposer(**fields | settings)


TEXT_LENGTH = 7
"""Tokens of further prompts, which differ from the prompt's own in number."""


def _embeddings(prompts: int) -> dict[str, Tensor]:
    return {
        "text": noise(prompts, TEXT_LENGTH, WIDTH, seed=9),
        "pooled": noise(prompts, POOLED, seed=8),
    }


MASK = [[row < 4 or column > 3 for column in range(COLUMNS)] for row in range(HEIGHT)]
TWO_TEXTS = ("sd", "sd21", "sdxl", "sd3", "sd35", "flux", "wan", "animatediff", "controlnet")
"""Families to whose denoiser a further text can be given."""


@dataclass(frozen=True)
class TextMethod:
    """One way to use a method that edits what the picture reads of texts.

    Attributes:
        id: What tests call it.
        make: A spec that acts; kept from being made before a test says where files may lie.
        families: Those that it acts on.
    """

    id: str
    make: Callable[[], Any]
    families: tuple[str, ...] = TWO_TEXTS


TEXT_METHODS = {
    method.id: method
    for method in (
        TextMethod("nag", lambda: NAG(phi=3.0, tau=1.3, alpha=0.7, embeddings=_embeddings(1))),
        TextMethod(
            "nag-l2",
            lambda: NAG(phi=3.0, tau=1.1, alpha=0.7, norm="l2", embeddings=_embeddings(1)),
        ),
        TextMethod(
            "nag-shared",
            lambda: NAG(phi=3.0, tau=1.3, embeddings=_embeddings(1), text_stream="shared"),
            families=("sd3", "sd35"),
        ),
        TextMethod(
            "regions",
            lambda: Regions(
                [((0, 0, 0.5, 0.5), "one"), (MASK, "two")], 0.3, stop=1.0, overlap="all",
                embeddings={"text": noise(2, TEXT_LENGTH, WIDTH, seed=9)},
            ),
        ),
        TextMethod(  # Its text is shorter than the prompt's, and only some blocks keep it apart.
            "regions-short",
            lambda: Regions(
                [((0, 0, 0.5, 0.5), "one")], 0.3, stop=1.0, every=(2, 2),
                embeddings={"text": noise(1, 3, WIDTH, seed=9)},
            ),
            ("flux",),
        ),
        TextMethod(
            "primecomposer", composed, ("sd", "sd21", "sdxl"),
        ),
        TextMethod(
            "reweight", lambda: Reweight({1: 2.0, 3: 0.25}), tuple(set(FAMILIES) - {"img2img"})
        ),
        TextMethod(
            "reweight-values", lambda: Reweight({1: 2.0, 3: -0.5}, "values"), ("sd", "sd3", "flux")
        ),
        TextMethod(
            "reweight-logits", lambda: Reweight({1: 2.0, 3: 0.5}, "logits"), ("sd", "pixart", "wan")
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class EditMethod:
    """One way to edit a picture by a second prompt, in pairs of a batch's rows.

    Attributes:
        id: What tests call it.
        make: A spec that acts; kept from being made before a test says where files may lie.
        families: Those that it acts on.
    """

    id: str
    make: Callable[[], Any]
    families: tuple[str, ...] = ("sd3", "sd35", "flux", "qwen")


PLACE = [[row > 3 and column > 1 for column in range(COLUMNS)] for row in range(HEIGHT)]
"""A part of the picture, whose edges are those of tokens."""

EDIT_METHODS = {
    method.id: method
    for method in (
        EditMethod("consistedit", lambda: ConsistEdit(mask=PLACE, strength=0.4)),
        EditMethod(
            "consistedit-outside",
            lambda: ConsistEdit(mask=PLACE, strength=1.0, region="outside", layers=(1, 2)),
        ),
        EditMethod("consistedit-all", lambda: ConsistEdit(mask="all", strength=0.7)),
        EditMethod("consistedit-words", lambda: ConsistEdit(words=(1, 2), strength=0.4)),
    )
}


def edits(*ids: str, families: tuple[str, ...] = tuple(FAMILIES)) -> pytest.MarkDecorator:
    """Run a test as ``test(family, method)``, names and methods, as `pairs` does."""
    return pytest.mark.parametrize(
        ("family", "method"),
        [
            pytest.param(family, EDIT_METHODS[i], id=f"{family}-{i}")
            for family in families
            for i in ids or EDIT_METHODS
            if family in EDIT_METHODS[i].families
        ],
    )


def text_pairs(*ids: str, families: tuple[str, ...] = tuple(FAMILIES)) -> pytest.MarkDecorator:
    """Run a test as ``test(family, method)``, names and methods, as `pairs` does."""
    return pytest.mark.parametrize(
        ("family", "method"),
        [
            pytest.param(family, TEXT_METHODS[i], id=f"{family}-{i}")
            for family in families
            for i in ids or TEXT_METHODS
            if family in TEXT_METHODS[i].families
        ],
    )


def pairs(*ids: str, families: tuple[str, ...] = tuple(FAMILIES)) -> pytest.MarkDecorator:
    """Run a test as ``test(family, method)``, names and methods.

    Args:
        *ids: Ids of methods; by default all.
        families: Names of families; by default all.
    """
    return pytest.mark.parametrize(
        ("family", "method"),
        [
            pytest.param(family, METHODS[i], id=f"{family}-{i}")
            for family in families
            for i in ids or METHODS
            if family in METHODS[i].families
        ],
    )
