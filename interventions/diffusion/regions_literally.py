"""Regions as their formula reads: by one mask of all on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.encode import encode, read
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.sites import Layout, Site
from regaze.interventions.diffusion import flux_literally, sd3_literally
from regaze.interventions.diffusion.places import read_mask
from regaze.interventions.diffusion.texts_literally import (
    Pairs,
    Reading,
    Texts,
    attention,
    denoiser_of,
    reading,
)

if TYPE_CHECKING:
    from regaze.interventions.diffusion.regions import Regions


def form(spec: Regions) -> WholeForm:
    """The literal form of a spec."""

    def acts(share: float, timestep: float) -> bool:
        return bool(spec.regions) and spec.base < 1 and spec.start <= share < spec.stop

    how = Reading(partial(_texts, spec), partial(_cross, spec), partial(_joint, spec), acts)
    return WholeForm(partial(reading, how))


def inside(spec: Regions, grid: Sequence[int]) -> Tensor:
    """The regions whose text each token of a grid reads, "R N": token by token."""
    *frames, rows, columns = grid
    found = torch.zeros(len(spec.regions), rows, columns, dtype=torch.bool, device="cpu")
    for number, (given, _) in enumerate(spec.regions):
        place = read_mask(given)
        for r in range(rows):
            for c in range(columns):
                y, x = (r + 0.5) / rows, (c + 0.5) / columns
                if isinstance(place, Tensor):
                    found[number, r, c] = place[int(y * place.shape[0]), int(x * place.shape[1])]
                else:
                    left, top, right, bottom = place
                    found[number, r, c] = left <= x < right and top <= y < bottom
    for r in range(rows):
        for c in range(columns):
            mine = found[:, r, c].nonzero().flatten().tolist()
            if len(mine) > 1 and spec.overlap in ("first", "last"):
                found[:, r, c] = False
                found[mine[0 if spec.overlap == "first" else -1], r, c] = True
    return found.flatten(1).repeat(1, frames[0] if frames else 1)


def _texts(spec: Regions, pipeline: Any, call: Mapping[str, Any], rows: int) -> Texts:
    if spec.embeddings is not None:
        encoded = read(spec.name, spec.embeddings)
    else:
        texts = [text for _, text in spec.regions]
        encoded = encode(pipeline, type(denoiser_of(pipeline)).__name__, texts)
    return Texts([one[None].expand(rows, -1, -1) for one in encoded.text])


def _cross(
    spec: Regions, query: Tensor, own: tuple[Tensor, Tensor], pairs: Pairs, layout: Layout,
    site: Site,
) -> Tensor:  # fmt: skip
    grid = layout.grid(site, query.shape[2])
    if grid is None:
        raise NotImplementedError("the tokens of a layer have no known grid")
    where = inside(spec, grid).to(query.device)
    plain, length = attention(query, *own), pairs[0][0].shape[2]
    key, value = (torch.cat([pair[i] for pair in pairs], 2) for i in (0, 1))
    seen, nowhere = where.T.repeat_interleave(length, 1), ~where.any(0)
    # Rows that see nothing would be NaN; they keep what they have.
    region = attention(query, key, value, seen | nowhere[:, None])
    mixed = (1 - spec.base) * region + spec.base * plain
    return torch.where(nowhere[:, None], plain, mixed)


def _joint(
    spec: Regions, denoiser: Any, call: Mapping[str, Any], texts: Texts, unguided: int
) -> Tensor:
    if type(denoiser).__name__ == "FluxTransformer2DModel":
        return _flux(spec, denoiser, call, texts)
    if spec.every != (1, 1):
        raise NotImplementedError("blocks that keep no regions apart (every) aren't written out")

    def mix(
        picture: sd3_literally.Triple,
        own: Tensor,
        streams: Sequence[sd3_literally.Triple],
        grid: tuple[int, int],
    ) -> tuple[Tensor, list[Tensor]]:
        length = streams[0][0].shape[2]
        query, key, value = (
            torch.cat([*(stream[i] for stream in streams), picture[i]], 2) for i in (0, 1, 2)
        )
        out = attention(query, key, value, _seen(spec, grid, length).to(own.device))
        *words, region = out.split([length] * len(streams) + [picture[0].shape[2]], 2)
        return (1 - spec.base) * region + spec.base * own, words

    return sd3_literally.forward(denoiser, call, texts, unguided, mix)


def _flux(spec: Regions, denoiser: Any, call: Mapping[str, Any], texts: Texts) -> Tensor:
    """The regions' picture; single blocks keep another one for the prompt's text."""
    length = texts.streams[0].shape[1]

    def mix(
        own: flux_literally.Heads,
        second: flux_literally.Heads,
        both: tuple[flux_literally.Triple, flux_literally.Triple],
        place: flux_literally.Place,
    ) -> tuple[flux_literally.Heads, flux_literally.Heads]:
        if place.number % spec.every[place.single] == 0:
            words, picture = both
            query, key, value = (torch.cat([words[i], picture[i]], 2) for i in (0, 1, 2))
            seen = _seen(spec, place.grid, length).to(query.device)
            out = attention(query, key, value, seen)
            split = words[0].shape[2]
            second = flux_literally.Heads(out[:, :, :split], out[:, :, split:])
        mixed = (1 - spec.base) * second.picture + spec.base * own.picture
        second = second._replace(picture=mixed)
        return (own if place.single else own._replace(picture=mixed)), second

    text = torch.cat(list(texts.streams), 1)
    return flux_literally.forward(denoiser, call, text, None, mix, 1)


def _seen(spec: Regions, grid: tuple[int, int], length: int) -> Tensor:
    """The mask of which token sees which, texts of a length first and then the picture."""
    where = inside(spec, grid)
    owner = torch.eye(len(where), dtype=torch.bool, device="cpu")
    bits = torch.cat([owner.repeat_interleave(length, 0), where.T])
    nowhere = ~bits.any(1)
    return (bits[:, None] & bits[None]).any(-1) | (nowhere[:, None] & nowhere[None])
