"""NAG and Regions as their formulas read: explicit maps, each text by a pass or stream of its own.

Cross-attention: a text's keys and values are those of a pass that has that text alone. Joint
attention of SD3: its blocks are run by a loop written here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_pipelines import Family
from torch import Tensor

from regaze.hooks.diffusion.literal_maps import kernels
from regaze.hooks.diffusion.sites import find_sites, read_layout
from regaze.interventions import NAG, Regions


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention by its map; ``seen`` "N K" says which columns a row may see."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    out: Tensor = logits.softmax(-1) @ value
    return out


def guided(positive: Tensor, negative: Tensor, spec: NAG) -> Tensor:
    """The paper's formula on "B H N D", row by row."""
    z, other = (x.transpose(1, 2).flatten(2) for x in (positive, negative))
    moved = z + spec.phi * (z - other)

    def length(x: Tensor) -> Tensor:
        return x.abs().sum(-1, True) if spec.norm == "l1" else x.square().sum(-1, True).sqrt()

    ratio = length(moved) / length(z)
    moved = torch.where(ratio > spec.tau, moved / ratio * spec.tau, moved)
    mixed = spec.alpha * moved + (1 - spec.alpha) * z
    heads: Tensor = mixed.unflatten(2, (positive.shape[1], -1))
    return heads.transpose(1, 2)


def inside(spec: Regions, tokens: int, finest: tuple[int, ...], halves: bool) -> Tensor:
    """Which tokens lie in which region, "R N", of the level that has so many tokens."""
    *frames, rows, columns = finest
    while halves and rows * columns != tokens:
        rows, columns = -(-rows // 2), -(-columns // 2)
    found = []
    for place, _ in spec.regions:
        grid = torch.zeros(rows, columns, dtype=torch.bool)
        for r in range(rows):
            for c in range(columns):
                y, x = (r + 0.5) / rows, (c + 0.5) / columns
                if isinstance(place, str):
                    mask = np.load(place)
                    grid[r, c] = bool(mask[int(y * mask.shape[0]), int(x * mask.shape[1])])
                else:
                    left, top, right, bottom = place
                    grid[r, c] = left <= x < right and top <= y < bottom
        found.append(grid.flatten().repeat(frames[0] if frames else 1))
    return torch.stack(found)


@contextmanager
def two_texts(pipe: Any, kind: Family, spec: Any, cfg: bool) -> Iterator[None]:
    """Run a method literally in the pipeline that is called inside."""
    denoiser = getattr(pipe, kind.denoiser)
    given = load_file(spec.embeddings)
    stock, calls = denoiser.forward, [0]
    manner = kind.running(cfg)
    name = "encoder_hidden_states"

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(stock).bind(*args, **kwargs).arguments
        calls[0] += 1
        if cfg and not kind.halves and calls[0] % 2 == 0:
            return stock(*args, **kwargs)  # The other branch.
        if type(denoiser).__name__ == "SD3Transformer2DModel":
            return (sd3(denoiser, call, spec, given, cfg),)
        text = call[name]
        stored = [recorded(denoiser, stock, {**call, name: one[None].expand(len(text), -1, -1)})
                  for one in given["text"]]  # fmt: skip
        layout = read_layout(denoiser, call)

        def kernel(site: str) -> Callable[..., Tensor]:
            def edit(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
                out = attention(query, key, value)
                others = [attention(query, *one[site]) for one in stored]
                if isinstance(spec, NAG):
                    new = guided(out, others[0], spec)
                else:
                    new = out.clone()
                    where = inside(spec, query.shape[2], layout.finest or (), layout.halves)
                    for token in range(query.shape[2]):
                        own = [n for n in range(len(stored)) if where[n, token]]
                        if own:
                            key, value = (torch.cat([stored[n][site][i] for n in own], 2)
                                          for i in (0, 1))  # fmt: skip
                            row = attention(query[:, :, token : token + 1], key, value)[:, :, 0]
                            base = spec.base
                            new[:, :, token] = (1 - base) * row + base * out[:, :, token]
                half = len(out) // 2
                halved = cfg and kind.halves
                return torch.cat([out[:half], new[half:]]) if halved else new

            return edit

        with kernels(denoiser, crosses(denoiser), kernel):
            return stock(*args, **kwargs)

    assert manner.cond_last
    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward


def crosses(denoiser: Any) -> list[str]:
    return [site.name for site in find_sites(denoiser) if site.kind == "cross"]


def recorded(denoiser: Any, stock: Any, call: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of a text, by layer: they depend on nothing else."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def kernel(site: str) -> Callable[..., Tensor]:
        def keep(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
            found[site] = key, value
            return attention(query, key, value)

        return keep

    with kernels(denoiser, crosses(denoiser), kernel):
        stock(**call)
    return found


# -- SD3 ---------------------------------------------------------------------------------------


def sd3(model: Any, call: dict[str, Any], spec: Any, given: dict[str, Tensor], cfg: bool) -> Tensor:
    """SD3's forward with one stream of the picture and several of text."""
    latents, pooled = call["hidden_states"], call["pooled_projections"]
    half = len(latents) // 2 if cfg else 0  # Unguided rows.
    hidden, time = model.pos_embed(latents), call["timestep"]
    emb = model.time_text_embed(time, pooled)
    own = model.context_embedder(call["encoder_hidden_states"])
    rows = len(latents) - half
    others = [model.context_embedder(one[None].expand(rows, -1, -1)) for one in given["text"]]
    second = emb[half:]
    if isinstance(spec, NAG) and spec.text_stream == "own":
        second = model.time_text_embed(time[half:], given["pooled"].expand(rows, -1))
    grid = (
        latents.shape[-2] // model.config.patch_size,
        latents.shape[-1] // model.config.patch_size,
    )
    for block in model.transformer_blocks:
        hidden, own, others = sd3_block(block, hidden, own, others, emb, second, spec, half, grid)
    hidden = model.proj_out(model.norm_out(hidden, emb))
    patch = model.config.patch_size
    hidden = hidden.unflatten(1, grid).unflatten(3, (patch, patch, -1))
    return torch.einsum("nhwpqc->nchpwq", hidden).reshape(len(latents), -1, *latents.shape[-2:])


def sd3_block(
    block: Any, hidden: Tensor, own: Tensor, others: list[Tensor], emb: Tensor, second: Tensor,
    spec: Any, half: int, grid: tuple[int, int],
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """One block: which attention goes where is written out; the rest is the block's own parts."""
    attn, count = block.attn, hidden.shape[1]
    if block.use_dual_attention:
        normed, gate, shift, scale, gate_mlp, normed2, gate2 = block.norm1(hidden, emb=emb)
    else:
        normed, gate, shift, scale, gate_mlp = block.norm1(hidden, emb=emb)

    def heads(x: Tensor, linear: Any, norm: Any = None) -> Tensor:
        x = linear(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        return x if norm is None else norm(x)

    picture = (heads(normed, attn.to_q, attn.norm_q), heads(normed, attn.to_k, attn.norm_k),
               heads(normed, attn.to_v))  # fmt: skip
    streams = []
    for text, time in ((own, emb), *((one, second) for one in others)):
        found = block.norm1_context(text, emb=time) if not block.context_pre_only else (
            block.norm1_context(text, time),
        )  # fmt: skip
        words = (heads(found[0], attn.add_q_proj, attn.norm_added_q),
                 heads(found[0], attn.add_k_proj, attn.norm_added_k),
                 heads(found[0], attn.add_v_proj))  # fmt: skip
        streams.append((found[1:], words))

    def both(query: Tensor, part: Any, rows: slice) -> Tensor:
        key, value = (torch.cat([picture[i][rows], part[i]], 2) for i in (1, 2))
        return attention(query, key, value)

    everyone, some = slice(None), slice(half, None)
    image = both(picture[0], streams[0][1], everyone)
    outputs = [both(streams[0][1][0], streams[0][1], everyone)]
    if isinstance(spec, NAG):
        negative = both(picture[0][some], streams[1][1], some)
        image = torch.cat([image[:half], guided(image[some], negative, spec)])
        outputs.append(both(streams[1][1][0], streams[1][1], some))
    else:
        region, read = regional(picture, [part for _, part in streams[1:]], some, spec, grid)
        mixed = (1 - spec.base) * region + spec.base * image[some]
        image = torch.cat([image[:half], mixed])
        outputs += read

    def merged(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    hidden = hidden + gate[:, None] * attn.to_out[0](merged(image))
    if block.use_dual_attention:
        hidden = hidden + gate2[:, None] * block.attn2(hidden_states=normed2)
    normed = block.norm2(hidden) * (1 + scale[:, None]) + shift[:, None]
    hidden = hidden + gate_mlp[:, None] * block.ff(normed)
    assert hidden.shape[1] == count
    if block.context_pre_only:
        return hidden, own, others
    texts = []
    for text, (found, _), out in zip([own, *others], streams, outputs, strict=True):
        gate, shift, scale, gate_mlp = (x[:, None] for x in found)
        text = text + gate * attn.to_add_out(merged(out))
        normed = block.norm2_context(text) * (1 + scale) + shift
        texts.append(text + gate_mlp * block.ff_context(normed))
    return hidden, texts[0], texts[1:]


def regional(
    picture: tuple[Tensor, ...], texts: list[Any], rows: slice, spec: Regions, grid: tuple[int, int]
) -> tuple[Tensor, list[Tensor]]:
    """Attention of the regions by one mask of all on all."""
    where, length = inside(spec, picture[0].shape[2], grid, False), texts[0][0].shape[2]
    query, key, value = (
        torch.cat([*(text[i] for text in texts), picture[i][rows]], 2) for i in (0, 1, 2)
    )
    bits = torch.cat(
        [torch.eye(len(texts), dtype=torch.bool).repeat_interleave(length, 0), where.T]
    )
    nowhere = ~bits.any(1)
    seen = (bits[:, None] & bits[None]).any(-1) | (nowhere[:, None] & nowhere[None])
    out = attention(query, key, value, seen)
    words = [out[:, :, n * length : (n + 1) * length] for n in range(len(texts))]
    return out[:, :, len(texts) * length :], words
