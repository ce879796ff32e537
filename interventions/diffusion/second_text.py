"""A second text for one picture: how it enters the denoiser, and what is read of it in attention.

Behind the first one in the same rows, where text is processed token by token (cross-attention) or
by attention alone: that costs the second text's tokens. Or in further rows of the batch, behind the
others, where each text has a modulation of its own. There, too, SD3 and FLUX's double blocks have
one picture (`regaze.interventions.diffusion.one_picture`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.encode import Encoded, rows_of
from regaze.hooks.diffusion.host import Host
from regaze.hooks.diffusion.lse import together, with_lse
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.rows import call_of_rows, join_rows

Guide = Callable[[Tensor, Tensor], Tensor]
"""Makes one of the picture's head outputs on the first and on the second text, "B H N D"."""

CROSS = ("UNet2DConditionModel", "UNetMotionModel", "WanTransformer3DModel")
JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")
"""Denoisers that keep two texts apart but in attention, cross- or joint."""

_OWN_TEXT = ("text_time",)
"""Additions to U-Nets' time embedding that don't look at the tokens of the text stream."""


def refuse(method: str, host: Host) -> None:
    """Check that a further text can be given to a model.

    Raises:
        ValueError: It can't, or it isn't known how.
    """
    if host.model in CROSS and any(site.kind == "cross" for site in host.sites):
        return
    if host.model in JOINT:
        return
    why = (
        "it has no attention to text"
        if not any(site.kind in ("cross", "joint") for site in host.sites)
        else "what its text is processed by, before or beside attention, isn't known to keep two "
        "texts apart"
    )
    raise ValueError(
        f"{method} can't act on {host.model}: {why}. It acts on U-Nets (Stable Diffusion, SDXL, "
        "AnimateDiff), Wan text to video, SD3 and FLUX"
    )


def check_call(method: str, call: dict[str, Any], pass_: Pass) -> None:
    """Check that a call's text may be made longer.

    Raises:
        ValueError: Something of the model would mix both texts, or it isn't known whose is whose.
    """
    name = type(pass_.denoiser).__name__
    masks = [n for n in ("encoder_attention_mask", "attention_mask") if call.get(n) is not None]
    if masks:
        raise ValueError(f"{method}: this {name} is called with {masks[0]}, of one text alone")
    if call.get("encoder_hidden_states_image") is not None:
        raise ValueError(
            f"{method}: this {name} reads the picture that it starts from among the text's "
            "columns, cut off at a fixed length, so that a second text can't be told from it: "
            "image to video isn't supported, text to video is"
        )
    added = getattr(pass_.denoiser.config, "addition_embed_type", None)
    if added not in (None, *_OWN_TEXT):
        raise ValueError(
            f"{method}: this {name} makes its time embedding of the whole text stream "
            f"(addition_embed_type={added!r}), which a second text would change"
        )


def _for_each_sample(call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
    """A call with a row of text for each of its samples.

    FLUX and Wan broadcast the embeddings of one prompt over several pictures, where a pipeline is
    given embeddings and ``num_images_per_prompt``.
    """
    batch = pass_.rows.batch
    given = {name: call.get(name) for name in (pass_.family.text, "pooled_projections")}
    lone = {n: x for n, x in given.items() if isinstance(x, Tensor) and len(x) == 1 < batch}
    return {**call, **{name: x.expand(batch, *x.shape[1:]) for name, x in lone.items()}}


def more_tokens(method: str, call: dict[str, Any], pass_: Pass, encoded: Encoded) -> dict[str, Any]:
    """A call whose text stream holds a second text behind the first."""
    check_call(method, call, pass_)
    call = _for_each_sample(call, pass_)
    name, rows = pass_.family.text, pass_.rows
    text: Tensor = call[name]
    cond = rows.cond or slice(0, rows.batch)
    samples = cond.stop - cond.start
    second = rows_of(encoded.text, samples, text, f"{method}: embeddings")
    second = second.repeat(rows.batch // samples, 1, 1)  # In other branches nobody reads it.
    second = second.repeat_interleave(len(text) // len(second), 0)
    return {**call, name: torch.cat([text, second], 1)}


def more_rows(method: str, call: dict[str, Any], pass_: Pass, encoded: Encoded) -> dict[str, Any]:
    """A call with a further row for each conditional one, of the same picture and a second text."""
    check_call(method, call, pass_)
    call = _for_each_sample(call, pass_)
    family, batch, cond = pass_.family, *_whose(pass_)
    more = call_of_rows(call, cond, batch, family)
    samples, name = cond.stop - cond.start, family.text
    if encoded.pooled is None:
        raise ValueError(f'{method}: this model needs "pooled" embeddings beside the text')
    what = f"{method}: embeddings"
    second = rows_of(encoded.text, samples, call[name], what)
    length = max(second.shape[1], call[name].shape[1])
    pooled = "pooled_projections"
    more |= {
        name: _padded(second, length),
        pooled: rows_of(encoded.pooled, samples, call[pooled], what),
    }
    first = {**call, name: _padded(call[name], length)}
    if (places := call.get("txt_ids")) is not None and len(places) != length:
        if places.any():
            raise ValueError(f"{method}: texts of two lengths, and txt_ids are known of one alone")
        first["txt_ids"] = places.new_zeros(length, *places.shape[1:])
    return join_rows(first, more, batch, family)


def regional_rows(
    method: str, call: dict[str, Any], pass_: Pass, encoded: Encoded
) -> dict[str, Any]:
    """A call whose rows read another text, with a further row for each that reads their own.

    Raises:
        ValueError: It holds another branch, too.
    """
    check_call(method, call, pass_)
    call = _for_each_sample(call, pass_)
    family, batch, cond = pass_.family, *_whose(pass_)
    if cond != slice(0, batch):
        raise ValueError(f"{method}: a batch of several branches isn't known of this model")
    text, places = call[family.text], call.get("txt_ids")
    other = rows_of(encoded.text, batch, text, f"{method}: embeddings")
    length = max(text.shape[1], other.shape[1])
    first = {**call, family.text: _padded(other, length)}
    second = {**call, family.text: _padded(text, length)}
    if places is not None:
        if places.any():
            raise ValueError(f"{method}: txt_ids are known of the prompt's own text alone")
        first["txt_ids"] = places.new_zeros(length, *places.shape[1:])
    return join_rows(first, second, batch, family)


def on_cross(call: Call, own: int, guide: Guide) -> Tensor:
    """Cross-attention whose keys are the first text's, then the second's."""
    rows = conditional(call)
    first, second = slice(None, own), slice(own, None)

    def read() -> tuple[Tensor, Tensor]:
        query, key, value = call.query, call.key, call.value
        return (
            call.kernel(query, key[:, :, first], value[:, :, first]),
            call.kernel(query[rows], key[rows, :, second], value[rows, :, second]),
        )

    output, other = call.once(read)
    return torch.cat([output[: rows.start], guide(output[rows], other), output[rows.stop :]])


def on_one_stream(call: Call, lengths: tuple[int, int], apart: int, guide: Guide) -> Tensor:
    """Joint attention of one picture with two texts in the same rows, which don't see each other.

    Args:
        call: The attention call.
        lengths: Lengths of both texts, in tokens.
        apart: Distance between both texts' beginnings; what lies between them is padding.
        guide: Makes the picture's rows of those on each text.
    """
    rows, start, image = conditional(call), call.text().start, picture_of(call)
    texts = [
        slice(n, n + length) for n, length in zip((start, start + apart), lengths, strict=True)
    ]
    others = [x for x in (slice(0, rows.start), slice(rows.stop, len(call.query)))
              if x.start < x.stop]  # fmt: skip

    def read() -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
        parts = [(part_of(call, x, image), part_of(call, x, texts[0])) for x in others]
        return _two_texts(call, rows, image, texts), [joint_outputs(call, *x) for x in parts]

    (positive, negative), unguided = call.once(read)
    tokens = image.stop - image.start
    output = torch.zeros_like(call.query)
    for branch, found in zip(others, unguided, strict=True):  # It reads its own text.
        output[branch, :, image], output[branch, :, texts[0]] = found
    output[rows, :, image] = guide(positive[:, :, :tokens], negative[:, :, :tokens])
    for text, joint in zip(texts, (positive, negative), strict=True):
        output[rows, :, text] = joint[:, :, tokens:]
    return output


def on_two_streams(call: Call, lengths: tuple[int, int], guide: Guide) -> Tensor:
    """Joint attention with a second text, and a picture of its own, in rows behind the others.

    Args:
        call: The attention call.
        lengths: Lengths of both texts, in tokens; the rest of a text's rows is padding.
        guide: Makes the picture's rows of those on each text.
    """
    batch, cond = _whose(call.pass_)
    start, image, behind = call.text().start, picture_of(call), slice(batch, len(call.query))
    first, second = (slice(start, start + length) for length in lengths)

    def read() -> list[tuple[Tensor, Tensor]]:
        return [joint_outputs(call, part_of(call, rows, image), part_of(call, rows, text))
                for rows, text in ((slice(0, batch), first), (behind, second))]  # fmt: skip

    (picture, one), (negative, two) = call.once(read)
    output = torch.zeros_like(call.query)
    output[:batch, :, image], output[:batch, :, first] = picture, one
    output[behind, :, second] = two
    output[cond, :, image] = output[behind, :, image] = guide(picture[cond], negative)
    return output


def _two_texts(
    call: Call, rows: slice, image: slice, texts: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """Joint attention of the picture with each of two texts, the picture's rows first.

    What all rows read of the picture is computed once, where a kernel tells its log-sum-exp.

    Args:
        call: Call whose kernel is used.
        rows: Rows of its batch.
        image: The picture's tokens.
        texts: The tokens of each text.
    """

    def of(x: Tensor, *tokens: slice) -> Tensor:
        return torch.cat([x[:, :, one] for one in tokens], 2)

    query, key, value = (x[rows] for x in (call.query, call.key, call.value))
    on_image = with_lse(query, key[:, :, image], value[:, :, image], call.scale)
    found = []
    for text in texts:
        asking = of(query, image, text)
        on_text = with_lse(asking, key[:, :, text], value[:, :, text], call.scale)
        if on_image is None or on_text is None:
            found.append(call.kernel(asking, of(key, image, text), of(value, image, text)))
        else:
            output, weight = on_image
            found.append(together((of(output, image, text), of(weight, image, text)), on_text))
    return found[0], found[1]


def joint_outputs(call: Call, picture: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The picture's rows and the text's, of joint attention of both."""
    found = call.kernel(*torch.cat([picture, text], 3))
    return found[:, :, : picture.shape[3]], found[:, :, picture.shape[3] :]


def part_of(call: Call, rows: slice, tokens: slice) -> Tensor:
    """Queries, keys and values of some rows, "3 B H N D"."""
    return torch.stack([x[rows, :, tokens] for x in (call.query, call.key, call.value)])


def picture_of(call: Call) -> slice:
    """The tokens that aren't the text's, reference pictures included."""
    text, tokens = call.text(), call.query.shape[2]
    if text.start:
        return slice(0, text.start)
    beside = 0 if call.entered is None else call.entered.text  # It may hold several texts.
    return slice(beside or text.stop, tokens)


def conditional(call: Call) -> slice:
    """The rows of a call's batch that are conditional."""
    (_, cond), frames = _whose(call.pass_), call.samples().frames
    return slice(cond.start * frames, cond.stop * frames)


def _whose(pass_: Pass | None) -> tuple[int, slice]:
    """The number of a pass's rows that are the pipeline's own, and the conditional ones."""
    if pass_ is None:
        raise RuntimeError("a second text is read in passes of a denoiser alone")
    return pass_.rows.batch, pass_.rows.cond or slice(0, pass_.rows.batch)


def _padded(text: Tensor, length: int) -> Tensor:
    return F.pad(text, (0, 0, 0, length - text.shape[1]))
