"""A second text for one picture: how it enters the denoiser, and what is read of it in attention.

Behind the first one in the same rows, where text is processed token by token (cross-attention) or
by attention alone: that costs the second text's tokens. Or in further rows of the batch, behind the
others, where each text has a modulation of its own. There, too, SD3 and FLUX's double blocks have
one picture: its queries, keys and values are the first rows'.
"""

from __future__ import annotations

from collections.abc import Callable
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


def more_tokens(method: str, call: dict[str, Any], pass_: Pass, encoded: Encoded) -> dict[str, Any]:
    """A call whose text stream holds a second text behind the first."""
    check_call(method, call, pass_)
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
    output = call.kernel(call.query, call.key[:, :, first], call.value[:, :, first])
    other = call.kernel(call.query[rows], call.key[rows, :, second], call.value[rows, :, second])
    return torch.cat([output[: rows.start], guide(output[rows], other), output[rows.stop :]])


def on_one_stream(call: Call, own: int, guide: Guide) -> Tensor:
    """Joint attention with both texts in the same rows, of which none sees the other."""
    rows, text, image = conditional(call), call.text(), picture_of(call)
    first, second = slice(text.start, text.start + own), slice(text.start + own, text.stop)
    parts = [part_of(call, rows, columns) for columns in (image, first, second)]
    positive, one, negative, other = _two_texts(call, *parts)
    output = torch.zeros_like(call.query)
    for branch in (slice(0, rows.start), slice(rows.stop, len(output))):
        if branch.start < branch.stop:  # Another branch reads its own text.
            found = joint_outputs(call, part_of(call, branch, image), part_of(call, branch, first))
            output[branch, :, image], output[branch, :, first] = found
    output[rows, :, image] = guide(positive, negative)
    output[rows, :, first], output[rows, :, second] = one, other
    return output


def on_two_streams(call: Call, own: int, other: int, guide: Guide, shared: bool) -> Tensor:
    """Joint attention with the second text in rows of its own.

    Args:
        call: It.
        own: Length of the first text; what is longer in its rows is padding.
        other: Length of the second.
        guide: What the picture's rows get.
        shared: Whether both have the first rows' picture.
    """
    batch, cond = _whose(call.pass_)
    text, image, behind = call.text(), picture_of(call), slice(batch, len(call.query))
    first, second = (slice(text.start, text.start + n) for n in (own, other))
    output = torch.zeros_like(call.query)
    for branch in (slice(0, cond.start), slice(cond.stop, batch)):
        if branch.start < branch.stop:
            found = joint_outputs(call, part_of(call, branch, image), part_of(call, branch, first))
            output[branch, :, image], output[branch, :, first] = found
    picture, one, two = (
        part_of(call, rows, columns)
        for rows, columns in ((cond, image), (cond, first), (behind, second))
    )
    if shared:
        positive, one_out, negative, two_out = _two_texts(call, picture, one, two)
    else:
        positive, one_out = joint_outputs(call, picture, one)
        negative, two_out = joint_outputs(call, part_of(call, behind, image), two)
    output[cond, :, image] = output[behind, :, image] = guide(positive, negative)
    output[cond, :, first], output[behind, :, second] = one_out, two_out
    return output


def _two_texts(call: Call, picture: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, ...]:
    """The picture's rows and the text's on each of two texts, picture on picture once if possible.

    Args:
        call: Whose kernel it is.
        picture: Its queries, keys and values, "3 B H N D".
        one: The same of a text.
        two: The same of another.
    """
    query, found = picture[0], []
    alone = with_lse(query, picture[1], picture[2], call.scale)
    for text in (one, two):
        columns = torch.cat([picture[1:], text[1:]], 3)
        on_text = None if alone is None else with_lse(query, text[1], text[2], call.scale)
        if alone is None or on_text is None:
            found.append(call.kernel(query, *columns))
        else:
            found.append(together(alone, on_text))
        found.append(call.kernel(text[0], *columns))
    return tuple(found)


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
    return slice(text.stop, tokens) if text.start == 0 else slice(0, text.start)


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
