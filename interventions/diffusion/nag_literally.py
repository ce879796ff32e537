"""NAG as its formula reads, on explicit maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.encode import Encoded, encode, read, rows_of
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import Layout, Site
from regaze.interventions.diffusion import flux_literally, sd3_literally
from regaze.interventions.diffusion.texts_literally import (
    Pairs,
    Reading,
    Texts,
    attention,
    denoiser_of,
    reading,
)

if TYPE_CHECKING:
    from regaze.interventions.diffusion.nag import NAG


def form(spec: NAG) -> WholeForm:
    """The literal form of a spec."""

    def acts(share: float, timestep: float) -> bool:
        late = spec.until > 0 and timestep < 1000 * spec.until
        return spec.phi > 0 and spec.alpha > 0 and spec.start <= share < spec.stop and not late

    return WholeForm(
        partial(reading, Reading(partial(_texts, spec), partial(_cross, spec),
                                 partial(_joint, spec), acts))
    )  # fmt: skip


def guided(spec: NAG, positive: Tensor, negative: Tensor) -> Tensor:
    """The paper's formula on "B H N D", row by row, heads merged."""
    z, other = (x.float().transpose(1, 2).flatten(2) for x in (positive, negative))
    moved = z + spec.phi * (z - other)

    def length(x: Tensor) -> Tensor:
        return x.abs().sum(-1, True) if spec.norm == "l1" else x.square().sum(-1, True).sqrt()

    ratio = length(moved) / length(z)
    moved = torch.where(ratio > spec.tau, moved / ratio * spec.tau, moved)
    mixed = spec.alpha * moved + (1 - spec.alpha) * z
    heads: Tensor = mixed.unflatten(2, (positive.shape[1], -1))
    return heads.transpose(1, 2).to(positive.dtype)


def _texts(spec: NAG, pipeline: Any, call: Mapping[str, Any], rows: int) -> Texts:
    variables = variables_of(pipeline)
    own = call[family_of(denoiser_of(pipeline)).text]
    given = variables.get("negative_prompt_embeds")
    if spec.embeddings is not None:
        encoded = read(spec.name, spec.embeddings)
    elif spec.negative is None and isinstance(given, Tensor):
        encoded = Encoded(given, variables.get("negative_pooled_prompt_embeds"))
    else:
        usual = variables.get("negative_prompt") or ""
        negative = usual if spec.negative is None else spec.negative
        texts = [negative] if isinstance(negative, str) else list(negative)
        others = {
            f"prompt_{n}": variables.get(f"negative_prompt_{n}")
            for n in ((2, 3) if spec.negative is None else ())
        }
        encoded = encode(pipeline, type(denoiser_of(pipeline)).__name__, texts, others)
    pooled = encoded.pooled if spec.text_stream == "own" else None
    return Texts(
        [rows_of(encoded.text, rows, own, "nag: embeddings")],
        pooled if pooled is None else rows_of(pooled, rows, pooled, "nag: embeddings"),
    )


def _cross(
    spec: NAG, query: Tensor, own: tuple[Tensor, Tensor], pairs: Pairs, layout: Layout,
    site: Site,
) -> Tensor:  # fmt: skip
    return guided(spec, attention(query, *own), attention(query, *pairs[0]))


def _joint(
    spec: NAG, denoiser: Any, call: Mapping[str, Any], texts: Texts, unguided: int
) -> Tensor:
    if type(denoiser).__name__ == "FluxTransformer2DModel":
        return _flux(spec, denoiser, call, texts)

    def mix(
        picture: sd3_literally.Triple,
        own: Tensor,
        streams: Sequence[sd3_literally.Triple],
        grid: tuple[int, int],
    ) -> tuple[Tensor, list[Tensor]]:
        words = streams[0]
        key, value = (torch.cat([picture[i], words[i]], 2) for i in (1, 2))
        negative = attention(picture[0], key, value)
        return guided(spec, own, negative), [attention(words[0], key, value)]

    return sd3_literally.forward(denoiser, call, texts, unguided, mix)


def _flux(spec: NAG, denoiser: Any, call: Mapping[str, Any], texts: Texts) -> Tensor:
    """The prompt's picture, after both have got the guided rows."""

    def mix(
        own: flux_literally.Heads,
        second: flux_literally.Heads,
        both: tuple[flux_literally.Triple, flux_literally.Triple],
        place: flux_literally.Place,
    ) -> tuple[flux_literally.Heads, flux_literally.Heads]:
        picture = guided(spec, own.picture, second.picture)
        return own._replace(picture=picture), second._replace(picture=picture)

    return flux_literally.forward(denoiser, call, texts.streams[0], texts.pooled, mix, 0)
