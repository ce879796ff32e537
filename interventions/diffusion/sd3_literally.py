"""SD3's forward with one stream of the picture and several of text, written out block by block.

Which attention goes where is written here; the rest is the blocks' own parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regaze.interventions.diffusion.texts_literally import Texts, attention, refuse_pictures

Triple = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values "B H N D"."""
Mix = Callable[[Triple, Tensor, Sequence[Triple], tuple[int, int]], tuple[Tensor, list[Tensor]]]
"""``mix(picture, own, texts, grid)``: the picture's head outputs, and those of each further text;
``own`` are the picture's on its own prompt, and all rows are conditional."""


def forward(model: Any, call: Mapping[str, Any], texts: Texts, unguided: int, mix: Mix) -> Tensor:
    """The prediction of an SD3 transformer if its picture reads further texts, too.

    Args:
        model: The transformer.
        call: Arguments of the transformer's call, by name.
        texts: Texts that the conditional rows read beside their prompts.
        unguided: Number of rows before the conditional ones.
        mix: Makes the output of all that they read.

    Raises:
        NotImplementedError: An adapter takes part.
    """
    refuse_pictures(call)
    latents, pooled, time = (call[n] for n in ("hidden_states", "pooled_projections", "timestep"))
    hidden, emb = model.pos_embed(latents), model.time_text_embed(time, pooled)
    own = model.context_embedder(call["encoder_hidden_states"])
    others = [model.context_embedder(one.to(own)) for one in texts.streams]
    second = emb[unguided:]
    if texts.pooled is not None:
        second = model.time_text_embed(time[unguided:], texts.pooled.to(pooled))
    patch = model.config.patch_size
    grid = latents.shape[-2] // patch, latents.shape[-1] // patch
    for block in model.transformer_blocks:
        hidden, own, others = _block(block, hidden, own, others, emb, second, unguided, grid, mix)
    hidden = model.proj_out(model.norm_out(hidden, emb))
    hidden = hidden.unflatten(1, grid).unflatten(3, (patch, patch, -1))
    return torch.einsum("nhwpqc->nchpwq", hidden).reshape(len(latents), -1, *latents.shape[-2:])


def _block(
    block: Any, hidden: Tensor, own: Tensor, others: list[Tensor], emb: Tensor, second: Tensor,
    unguided: int, grid: tuple[int, int], mix: Mix,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    attn = block.attn
    normed, gate, shift, scale, gate_mlp, *dual = block.norm1(hidden, emb=emb)

    def heads(x: Tensor, linear: Any, norm: Any) -> Tensor:
        x = linear(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        return x if norm is None else norm(x)

    def merged(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    picture = (
        heads(normed, attn.to_q, attn.norm_q),
        heads(normed, attn.to_k, attn.norm_k),
        heads(normed, attn.to_v, None),
    )
    streams: list[tuple[Sequence[Tensor], Triple]] = []
    for text, moment in ((own, emb), *((one, second) for one in others)):
        found: Sequence[Tensor]
        if block.context_pre_only:
            found = (block.norm1_context(text, moment),)
        else:
            found = block.norm1_context(text, emb=moment)
        words = (
            heads(found[0], attn.add_q_proj, attn.norm_added_q),
            heads(found[0], attn.add_k_proj, attn.norm_added_k),
            heads(found[0], attn.add_v_proj, None),
        )
        streams.append((found[1:], words))
    mine = streams[0][1]
    key, value = (torch.cat([picture[i], mine[i]], 2) for i in (1, 2))
    image, read = attention(picture[0], key, value), attention(mine[0], key, value)
    some = picture[0][unguided:], picture[1][unguided:], picture[2][unguided:]
    new, others_read = mix(some, image[unguided:], [words for _, words in streams[1:]], grid)
    image = torch.cat([image[:unguided], new])
    hidden = hidden + gate[:, None] * attn.to_out[0](merged(image))
    if dual:
        hidden = hidden + dual[1][:, None] * block.attn2(hidden_states=dual[0])
    normed = block.norm2(hidden) * (1 + scale[:, None]) + shift[:, None]
    hidden = hidden + gate_mlp[:, None] * block.ff(normed)
    if block.context_pre_only:
        return hidden, own, others
    after = []
    for text, (found, _), out in zip([own, *others], streams, [read, *others_read], strict=True):
        gate, shift, scale, gate_mlp = (x[:, None] for x in found)
        text = text + gate * attn.to_add_out(merged(out))
        normed = block.norm2_context(text) * (1 + scale) + shift
        after.append(text + gate_mlp * block.ff_context(normed))
    return hidden, after[0], after[1:]
