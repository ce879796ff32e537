"""Structured Diffusion Guidance as its formula reads: a whole map for each pair of contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.encode import encode
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.literal import WholeForm
from regaze.hooks.diffusion.running import variables_of
from regaze.hooks.diffusion.sites import Layout, Site
from regaze.interventions.diffusion.phrase_contexts import other_spans
from regaze.interventions.diffusion.texts_literally import (
    Pairs,
    Reading,
    Texts,
    attention,
    denoiser_of,
    reading,
)

if TYPE_CHECKING:
    from regaze.interventions.diffusion.structured_diffusion import StructuredDiffusion


def form(spec: StructuredDiffusion) -> WholeForm:
    """The literal form of a spec."""

    def acts(share: float, timestep: float) -> bool:
        return bool(spec.phrases) and spec.start <= share < spec.stop

    how = Reading(partial(_texts, spec), partial(_cross, spec), None, acts, spec.layers)
    return WholeForm(partial(reading, how))


def _texts(spec: StructuredDiffusion, pipeline: Any, call: Mapping[str, Any], rows: int) -> Texts:
    """The contexts W_1 ... W_k of the sample with most phrases, and W*."""
    given = variables_of(pipeline).get("prompt")
    prompts = [given] if isinstance(given, str) else list(given or ())
    if not prompts:
        raise NotImplementedError("the pipeline was given embeddings, whose words aren't known")
    each = rows // len(prompts)
    whole: Tensor = call[family_of(denoiser_of(pipeline)).text]
    own = whole[:: len(whole) // _rows(call)][-rows:]  # One of a sample's frames.
    lists = [phrases for phrases in spec.of(prompts) for _ in range(each)]
    contexts, merged = [], []
    for row, phrases in enumerate(lists):
        prompt = prompts[row // each]
        if spec.absent == "skip":
            phrases = tuple(p for p in phrases if _places(pipeline, prompt, p))
        if spec.spans == "random":
            phrases = tuple(other_spans(prompt, phrases))
        mine, last = [], own[row]
        for phrase in phrases:
            mine.append(_put(pipeline, prompt, phrase, own[row]))
            last = _put(pipeline, prompt, phrase, last)
        contexts.append(mine)
        merged.append(last)
    if len({len(mine) for mine in contexts}) > 1:
        raise NotImplementedError("samples with different numbers of phrases aren't written out")
    each_context = zip(*contexts, strict=True)
    return Texts([*(torch.stack(list(one)) for one in each_context), torch.stack(merged)])


def _rows(call: Mapping[str, Any]) -> int:
    return len(call["sample"])


def _ids(pipeline: Any, text: str) -> list[int]:
    found: list[int] = pipeline.tokenizer(text, add_special_tokens=False).input_ids
    return found


def _places(pipeline: Any, prompt: str, phrase: str) -> list[int]:
    """The column at which a phrase's tokens begin in a prompt, the token that begins it counted."""
    whole, part = _ids(pipeline, prompt), _ids(pipeline, phrase)
    return [1 + i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part]


def _put(pipeline: Any, prompt: str, phrase: str, context: Tensor) -> Tensor:
    """A context "L C" with a phrase's own embeddings in its place."""
    alone = encode(pipeline, "UNet2DConditionModel", [phrase]).text[0].to(context)
    length, found = len(_ids(pipeline, phrase)), context.clone()
    for place in _places(pipeline, prompt, phrase):
        found[place : place + length] = alone[1 : 1 + length]
    return found


def _cross(
    spec: StructuredDiffusion, query: Tensor, own: tuple[Tensor, Tensor], pairs: Pairs,
    layout: Layout, site: Site,
) -> Tensor:  # fmt: skip
    *phrases, merged = pairs
    every: Sequence[tuple[Tensor, Tensor]] = [own, *phrases]
    outputs = [
        attention(
            query,
            own[0] if spec.keys == "prompt" else key,
            merged[1] if spec.keys == "phrases" else value,
        )
        for key, value in every
    ]
    return torch.stack(outputs).mean(0)
