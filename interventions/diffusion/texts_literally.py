"""Further texts as formulas read: explicit maps, each text by a pass or a stream of its own.

Cross-attention: the keys and values of a text are those of a whole pass of the denoiser that is
given that text alone. Joint attention: `sd3_literally` and `flux_literally` beside this file. None
of them shares code with what the engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.literal import Manner, Steps, by_name, repeatable
from regaze.hooks.diffusion.literal_maps import kernels
from regaze.hooks.diffusion.predictions import with_prediction
from regaze.hooks.diffusion.sites import Layout, Site, find_sites, read_layout

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Keys and values "B H L D" of each of some texts."""


@dataclass(frozen=True)
class Texts:
    """Texts that conditional rows read beside their own prompt.

    Attributes:
        streams: Each text as the denoiser is given it, "rows L C".
        pooled: Pooled text of the first "rows D", where its stream is modulated by it; None for the
            prompt's own.
    """

    streams: Sequence[Tensor]
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """The parts of a method written out.

    Attributes:
        texts: ``texts(pipeline, call, rows)``: what the conditional rows of a call read.
        cross: ``cross(query, own, pairs, layout, site)``: the head outputs "B H N D" of the
            picture, of its queries, its keys and values on the prompt, those on each further text,
            the tokens' layout, and the layer.
        joint: A whole pass of SD3 or FLUX: ``joint(denoiser, call, texts, unguided)``, the last
            being how many rows come before the conditional ones.
        acts: ``acts(share, timestep)``: whether it does anything in a step.
        layers: Paths of the layers of cross-attention that do; None: all.
    """

    texts: Callable[[Any, Mapping[str, Any], int], Texts]
    cross: Callable[[Tensor, tuple[Tensor, Tensor], Pairs, Layout, Site], Tensor]
    joint: Callable[[Any, Mapping[str, Any], Texts, int], Tensor] | None
    acts: Callable[[float, float], bool]
    layers: Sequence[str | int] | None = None


def denoiser_of(pipeline: Any) -> Any:
    """A pipeline's transformer or U-Net."""
    found = getattr(pipeline, "transformer", None)
    return pipeline.unet if found is None else found


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention by its map, in float32.

    Args:
        query: "B H N D".
        key: "B H K D".
        value: "B H K D".
        seen: True where a row may see a column, "N K".
    """
    logits = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    output: Tensor = logits.softmax(-1) @ value.float()
    return output.to(query.dtype)


def refuse_pictures(call: Mapping[str, Any]) -> None:
    """Check that joint attention is to the text and the picture alone.

    Raises:
        NotImplementedError: An IP-Adapter takes part.
    """
    if any(name.startswith("ip_") for name in call.get("joint_attention_kwargs") or ()):
        raise NotImplementedError("joint attention beside an IP-Adapter's isn't written out")


@contextmanager
def reading(method: Reading, pipeline: Any, running: Manner) -> Iterator[None]:
    """Run a method literally in the pipeline that is called inside.

    Args:
        method: The method.
        pipeline: A diffusers pipeline with nothing attached.
        running: The run that is to come.

    Raises:
        NotImplementedError: Its denoiser isn't written out.
    """
    denoiser = getattr(pipeline, running.denoiser)
    name, text = type(denoiser).__name__, family_of(denoiser).text
    if method.joint is None and not _crosses(denoiser):
        raise NotImplementedError(
            f"what {name} reads of two texts isn't written out; U-Nets and Wan are"
        )
    stock, steps, calls = repeatable(denoiser.forward), Steps(), [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        other = running.guided and running.calls and calls[0] % 2 == 1
        calls[0] += 1
        call = by_name(denoiser, args, kwargs)
        share, t = steps.share(pipeline, call.get("timestep"), cond=not other)
        if other or not method.acts(share, t):
            return stock(**call)
        rows = len(call["sample"] if "sample" in call else call["hidden_states"])
        if len(call[text]) == 1:  # Of one prompt, broadcast over several pictures.
            call[text] = call[text].expand(rows, -1, -1)
        unguided = rows // 2 if running.both else 0
        if unguided and not running.cond_last:
            raise NotImplementedError("the conditional half comes first, which isn't written out")
        texts = method.texts(pipeline, call, rows - unguided)
        if method.joint is not None and not _crosses(denoiser):
            prediction = method.joint(denoiser, call, texts, unguided)
            return with_prediction(stock(**call), prediction)
        return _crossed(method, denoiser, stock, call, texts, text, rows, unguided)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


def _crossed(
    method: Reading, denoiser: Any, stock: Any, call: dict[str, Any], texts: Texts, text: str,
    rows: int, unguided: int,
) -> Any:  # fmt: skip
    """A pass whose conditional rows read further texts by cross-attention."""
    whole: Tensor = call[text]
    stored = []
    for stream in texts.streams:
        # Other rows, and frames, get the same; what they would read of it is never used.
        every = stream.repeat(rows // len(stream), 1, 1)
        every = every.repeat_interleave(len(whole) // rows, 0).to(whole)
        stored.append(_recorded(denoiser, stock, {**call, text: every}))
    layout, sites = read_layout(denoiser, call), {s.name: s for s in find_sites(denoiser)}

    def kernel(site: str) -> Callable[..., Tensor]:
        def edit(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
            plain = attention(query, key, value)
            first = unguided * len(query) // rows
            pairs = [(one[site][0][first:], one[site][1][first:]) for one in stored]
            own = key[first:], value[first:]
            if method.layers is not None and site not in method.layers:
                return plain
            crossed = method.cross(query[first:], own, pairs, layout, sites[site])
            return torch.cat([plain[:first], crossed])

        return edit

    with kernels(denoiser, _crosses(denoiser), kernel):
        return stock(**call)


def _crosses(denoiser: Any) -> list[str]:
    return [site.name for site in find_sites(denoiser) if site.kind == "cross"]


def _recorded(denoiser: Any, stock: Any, call: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of a text, by layer: they depend on nothing else."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def kernel(site: str) -> Callable[..., Tensor]:
        def keep(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
            found[site] = key, value
            return attention(query, key, value)

        return keep

    with kernels(denoiser, _crosses(denoiser), kernel):
        stock(**call)
    return found
