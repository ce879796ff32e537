"""ConsistEdit as its formula reads, on explicit maps, token by token."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from regaze.hooks.diffusion.literal import AttendForm
from regaze.hooks.diffusion.literal_maps import Map

if TYPE_CHECKING:
    from regaze.interventions.diffusion.consist_edit import ConsistEdit


def form(spec: ConsistEdit, mask: Tensor | None) -> AttendForm:
    """The literal form of a spec, with a mask that was given or, for "all", none."""
    return AttendForm(
        spec.layers or (), partial(_map, spec, mask), values=partial(_values, spec, mask)
    )


def _map(spec: ConsistEdit, mask: Tensor | None, m: Map) -> Tensor:
    query, key = (_mixed(spec, mask, m, x, True) for x in (m.query, m.key))
    logits = query @ key.transpose(-1, -2) * m.scale
    return (logits + m.bias).softmax(-1)


def _values(spec: ConsistEdit, mask: Tensor | None, m: Map) -> Tensor:
    return _mixed(spec, mask, m, m.value, False)


def _mixed(spec: ConsistEdit, mask: Tensor | None, m: Map, x: Tensor, structure: bool) -> Tensor:
    """Edits of a branch with the picture's tokens of the row before."""
    done, (step, steps) = x.clone(), m.step
    whole = structure and step < int(spec.strength * steps)
    branches, _, images = m.split
    each = len(x) // branches
    for row in range(len(x)):
        if (row % each) // images % (spec.rounds + 1):
            source = row - images
            for n, token in enumerate(range(m.image.start, m.image.stop)):
                if whole or not _free(spec, mask, m, n):
                    done[row, :, token] = done[source, :, token]
    return done


def _free(spec: ConsistEdit, mask: Tensor | None, m: Map, token: int) -> bool:
    """True for a token of the picture that may be edited."""
    if mask is None:
        return spec.region == "inside"
    _, rows, columns = m.grid
    frame, place = divmod(token, rows * columns)
    here = mask if mask.ndim == 2 else mask[frame]
    tall, wide = here.shape[0] / rows, here.shape[1] / columns
    row, column = divmod(place, columns)
    part = here[
        int(row * tall) : max(int(row * tall) + 1, math.ceil((row + 1) * tall)),
        int(column * wide) : max(int(column * wide) + 1, math.ceil((column + 1) * wide)),
    ]
    return bool(part.any()) == (spec.region == "inside")
