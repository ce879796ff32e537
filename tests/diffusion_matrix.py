"""Which guidance methods work on which pipelines: the rows and columns of the tests.

Every promise is tested over these methods and the families of tiny pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from tiny_pipelines import FAMILIES, Family

from regaze.interventions import PAG, SEG, SLG, STG, TPG, SoftPAG
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
            "slg", SLG(scale=SCALE, layers=[1], start=0.3, stop=1.0), SLG(scale=0, layers=[1]),
            families=BLOCKS,
        ),
        Method(
            "stg-block", STG(scale=SCALE, layers=[1]), STG(scale=0, layers=[1]), families=BLOCKS,
        ),
        Method("stg-attention", STG(SCALE, [1], skip="attention"), STG(0, [1], skip="attention")),
        Method("stg-diagonal", STG(SCALE, [1], skip="diagonal"), STG(0, [1], skip="diagonal")),
    )
}  # fmt: skip


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
