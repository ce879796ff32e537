"""FLUX's forward with a second text, written out block by block.

Double blocks have one stream of the picture and two of text. Single blocks hold text and picture in
one sequence, so that there are two of these, each with its text's modulation; both begin with the
double blocks' picture. Which attention goes where is written here; the rest is the blocks' own
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from regaze.interventions.diffusion.texts_literally import attention, refuse_pictures

Triple = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values "B H N D"."""


class Heads(NamedTuple):
    """Head outputs "B H N D" of a text's rows and of the picture's beside it."""

    text: Tensor
    picture: Tensor


class Mix(Protocol):
    """A method's mixture of both texts' attention."""

    def __call__(
        self, own: Heads, second: Heads, both: tuple[Triple, Triple], place: Place
    ) -> tuple[Heads, Heads]:
        """Head outputs that both sequences get.

        Args:
            own: Joint attention of the prompt's text and the picture.
            second: The same of the second text.
            both: The second text's queries, keys and values, and those of its picture.
            place: The block's place.
        """


class Place(NamedTuple):
    """The place of a block, and the order of the picture's tokens.

    Attributes:
        single: True if it is a single block.
        number: Number of the block among its kind.
        grid: Rows and columns.
    """

    single: bool
    number: int
    grid: tuple[int, int]


def forward(
    model: Any, call: Mapping[str, Any], text: Tensor, pooled: Tensor | None, mix: Mix, result: int
) -> Tensor:
    """The prediction of a FLUX transformer.

    Args:
        model: The transformer.
        call: Arguments of the transformer's call, by name.
        text: The second text as the denoiser is given it, "B L C".
        pooled: Pooled text that modulates its stream, "B D"; None: the prompt's.
        mix: Makes the output of all that both read.
        result: The sequence that is predicted: 0 the prompt's, 1 the second text's.

    Raises:
        NotImplementedError: A ControlNet or an adapter takes part.
    """
    for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
        if call.get(name) is not None:
            raise NotImplementedError("FLUX with a ControlNet isn't written out")
    refuse_pictures(call)
    first = call["pooled_projections"]
    embs = [_modulation(model, call, x) for x in (first, first if pooled is None else pooled)]
    picture = model.x_embedder(call["hidden_states"])
    texts = [model.context_embedder(x.to(picture)) for x in (call["encoder_hidden_states"], text)]
    places = call["img_ids"]
    turns = [_turns(model, places, x.shape[1]) for x in texts]
    rows, columns = (int(places[:, axis].max()) + 1 for axis in (1, 2))
    for index, block in enumerate(model.transformer_blocks):
        place = Place(False, index, (rows, columns))
        picture, texts = _double(block, picture, texts, embs, turns, mix, place)
    streams = [torch.cat([x, picture], 1) for x in texts]
    for index, block in enumerate(model.single_transformer_blocks):
        place = Place(True, index, (rows, columns))
        streams = _single(block, streams, [x.shape[1] for x in texts], embs, turns, mix, place)
    last = streams[result][:, texts[result].shape[1] :]
    predicted: Tensor = model.proj_out(model.norm_out(last, embs[result]))
    return predicted


def _modulation(model: Any, call: Mapping[str, Any], pooled: Tensor) -> Tensor:
    like = call["hidden_states"].dtype
    given = (call["timestep"], call.get("guidance"))
    scaled = [1000 * x.to(like) for x in given if x is not None]
    found: Tensor = model.time_text_embed(*scaled, pooled.to(like))
    return found


def _turns(model: Any, places: Tensor, length: int) -> Any:
    """Rotations of a text's tokens, which lie nowhere, and of the picture's."""
    return model.pos_embed(torch.cat([places.new_zeros(length, places.shape[1]), places]))


def _heads(attn: Any, x: Tensor, prefix: str) -> Triple:
    """Queries, keys and values of tokens, by the picture's or the text's projections."""
    names = ("to_q", "to_k", "to_v") if not prefix else ("add_q_proj", "add_k_proj", "add_v_proj")
    query, key, value = (
        getattr(attn, name)(x).unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for name in names
    )
    return getattr(attn, f"norm_{prefix}q")(query), getattr(attn, f"norm_{prefix}k")(key), value


def _turned(one: Triple, turn: tuple[Tensor, Tensor]) -> Triple:
    """Queries and keys rotated, neighbouring channels as a pair, by cosines and sines "N D"."""
    cosine, sine = turn

    def rotated(x: Tensor) -> Tensor:
        real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack([-imaginary, real], -1).flatten(-2)
        return (x.float() * cosine + across * sine).to(x.dtype)

    return rotated(one[0]), rotated(one[1]), one[2]


def _joint(sequence: Triple, length: int) -> Heads:
    out = attention(*sequence)
    return Heads(out[:, :, :length], out[:, :, length:])


def _cut(sequence: Triple, length: int) -> tuple[Triple, Triple]:
    text = sequence[0][:, :, :length], sequence[1][:, :, :length], sequence[2][:, :, :length]
    picture = sequence[0][:, :, length:], sequence[1][:, :, length:], sequence[2][:, :, length:]
    return text, picture


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _double(
    block: Any, picture: Tensor, texts: list[Tensor], embs: list[Tensor], turns: list[Any],
    mix: Mix, place: Place,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    attn = block.attn
    normed, *gates = block.norm1(picture, emb=embs[0])
    image = _heads(attn, normed, "")
    modulated = [block.norm1_context(x, emb=emb) for x, emb in zip(texts, embs, strict=True)]
    found, sequences = [], []
    for (words, *_), turn in zip(modulated, turns, strict=True):
        own = _heads(attn, words, "added_")
        joined = tuple(torch.cat([a, b], 2) for a, b in zip(own, image, strict=True))
        sequences.append(_turned((joined[0], joined[1], joined[2]), turn))
        found.append(_joint(sequences[-1], words.shape[1]))
    outs = mix(found[0], found[1], _cut(sequences[1], texts[1].shape[1]), place)
    picture = _after(
        picture, attn.to_out[0](_merged(outs[0].picture)), gates, block.norm2, block.ff
    )
    after = [
        _after(text, attn.to_add_out(_merged(out.text)), own, block.norm2_context, block.ff_context)
        for text, out, (_, *own) in zip(texts, outs, modulated, strict=True)
    ]
    return picture, after


def _after(
    x: Tensor, out: Tensor, gates: list[Tensor], norm: Callable[[Tensor], Tensor],
    feed: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """A stream behind its attention."""
    gate, shift, scale, gate_mlp = (y[:, None] for y in gates)
    x = x + gate * out
    return x + gate_mlp * feed(norm(x) * (1 + scale) + shift)


def _single(
    block: Any, streams: list[Tensor], lengths: list[int], embs: list[Tensor], turns: list[Any],
    mix: Mix, place: Place,
) -> list[Tensor]:  # fmt: skip
    modulated = [block.norm(x, emb=emb) for x, emb in zip(streams, embs, strict=True)]
    sequences = [
        _turned(_heads(block.attn, normed, ""), turn)
        for (normed, _), turn in zip(modulated, turns, strict=True)
    ]
    found = [_joint(one, length) for one, length in zip(sequences, lengths, strict=True)]
    outs = mix(found[0], found[1], _cut(sequences[1], lengths[1]), place)
    after = []
    for x, (normed, gate), out in zip(streams, modulated, outs, strict=True):
        heads = _merged(torch.cat([out.text, out.picture], 2))
        inner = block.act_mlp(block.proj_mlp(normed))
        after.append(x + gate[:, None] * block.proj_out(torch.cat([heads, inner], 2)))
    return after
