"""Which guidance methods work on which pipelines: the rows and columns of the tests.

Every promise is tested over these methods and the families of tiny pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from literal_maps import blur_matrix, grid_of, image_tokens, target_map
from tiny_pipelines import FAMILIES, Family
from torch import Tensor

from regaze.interventions import PAG, SEG, SoftPAG
from regaze.interventions.diffusion.guided import Guided

SCALE = 1.5
HEADS = {"L1": [0], "L2": {"0": 0.3, "1": 0.9}}
STRENGTHS: dict[int, dict[int, float]] = {1: {0: 0.5}, 2: {0: 0.3, 1: 0.9}}


@dataclass(frozen=True)
class Method:
    """One way to use a method.

    Attributes:
        id: What tests call it.
        acts: A spec that acts on every tiny pipeline, if given the family's layers.
        idle: One of strength zero.
        edit: The literal edit of a map: ``edit(site, query, key, logits, bias, map, scale)``.
        on_layers: Whether it takes layers.
    """

    id: str
    acts: Guided
    idle: Guided
    edit: Callable[..., Tensor]
    on_layers: bool = True

    def on(self, family: Family) -> Guided:
        """The spec for a family's layers."""
        return replace(self.acts, layers=family.perturb) if self.on_layers else self.acts


def _soft(kind: str, u: float, tau: float = 1.0) -> Callable[..., Tensor]:
    def edit(site: Any, query: Tensor, key: Tensor, logits: Tensor, bias: Tensor, a: Tensor,
             scale: float) -> Tensor:  # fmt: skip
        return (1 - u) * a + u * target_map(kind, query, logits, bias, a, key, scale, tau)

    return edit


def _per_head(site: Any, query: Tensor, key: Tensor, logits: Tensor, bias: Tensor, a: Tensor,
              scale: float) -> Tensor:  # fmt: skip
    u = torch.zeros(a.shape[1], 1, 1)
    for head, strength in STRENGTHS.get(site.layer, {}).items():
        u[head] = strength
    return (1 - u) * a + u * torch.eye(a.shape[-1])


def _blurred(sigma: float) -> Callable[..., Tensor]:
    def edit(site: Any, query: Tensor, key: Tensor, logits: Tensor, bias: Tensor, a: Tensor,
             scale: float) -> Tensor:  # fmt: skip
        image = image_tokens(site.name, logits.shape[-1], site.order)
        frames, rows, columns = grid_of(image.stop - image.start)
        if sigma > 9999:
            n = frames * rows * columns
            blur = torch.full((n, n), 1 / n)
        else:
            blur = torch.kron(torch.eye(frames), blur_matrix(rows, columns, sigma))
        logits = logits.clone()
        logits[:, :, image] = blur @ logits[:, :, image]
        return (logits + bias).softmax(-1)

    return edit


def _image_block(site: Any, query: Tensor, key: Tensor, logits: Tensor, bias: Tensor, a: Tensor,
                 scale: float) -> Tensor:  # fmt: skip
    image = image_tokens(site.name, logits.shape[-1], site.order)
    logits = logits.clone()
    others = ~torch.eye(image.stop - image.start, dtype=torch.bool)
    logits[:, :, image, image] = logits[:, :, image, image].masked_fill(others, -torch.inf)
    return (logits + bias).softmax(-1)


METHODS = {
    method.id: method
    for method in (
        Method("pag", PAG(scale=SCALE), PAG(scale=0), _soft("identity", 1)),
        Method(
            "pag-image", PAG(scale=SCALE, variant="image"), PAG(scale=0, variant="image"),
            _image_block,
        ),
        Method("seg", SEG(scale=SCALE, sigma=1.0), SEG(sigma=0), _blurred(1.0)),
        Method("seg-infinite", SEG(scale=SCALE), SEG(scale=0), _blurred(1e6)),
        Method(
            "softpag-heads", SoftPAG(scale=SCALE, heads=HEADS), SoftPAG(heads={}), _per_head,
            on_layers=False,
        ),
        Method(
            "softpag-uniform", SoftPAG(scale=SCALE, u=0.6, target="uniform"),
            SoftPAG(u=0, target="uniform"), _soft("uniform", 0.6),
        ),
        Method(
            "softpag-query-mean", SoftPAG(scale=SCALE, u=1, target="query_mean"),
            SoftPAG(u=0, target="query_mean"), _soft("query_mean", 1),
        ),
        Method(
            "softpag-temperature", SoftPAG(scale=SCALE, u=0.8, target="temperature", tau=3.0),
            SoftPAG(u=0, target="temperature", tau=3.0), _soft("temperature", 0.8, 3.0),
        ),
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
        ],
    )
