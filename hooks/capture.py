"""capture: look at attention without building the T x T map.

Only the rows asked for are computed, beside the model's own fused attention, and what the model
outputs is untouched bit for bit. Captured rows see the edits that were attached before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

from regaze.hooks.attach import seat_of
from regaze.hooks.attachment import Detachable
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host, check_layers, find_host
from regaze.hooks.passes import Rows
from regaze.hooks.placed import Placed
from regaze.hooks.stack import Stack
from regaze.hooks.targets import split_target
from regaze.hooks.text_capture import Capture, CaptureEdit, Rowset
from regaze.hooks.vision import vision_seat
from regaze.hooks.vision_capture import PictureRows, VisionCapture, VisionCaptureEdit

Seen = TypeVar("Seen")
Heads = Iterable[int] | Literal["mean"] | None


class Capturing(Detachable, Generic[Seen]):
    """A capture on a model, until the end of the ``with`` block or `detach`."""

    def __init__(self, stack: Stack, edit: Edit, capture: Seen) -> None:
        self.capture = capture
        self._placed = Placed([(edit, stack)])
        try:
            self._placed.put_on()
        except BaseException:
            self.detach()
            raise

    def __enter__(self) -> Seen:
        return self.capture

    def detach(self) -> None:
        """Stop capturing; what was captured stays. A second call does nothing."""
        self._placed.take_off()


@overload
def capture(
    target: Any,
    rows: Rows | Sequence[int] = ...,
    layers: Iterable[int] | None = ...,
    heads: Heads = ...,
    processor: Any = ...,
    tower: Literal["text"] = ...,
) -> Capturing[Capture]: ...


@overload
def capture(
    target: Any,
    rows: Rows | Sequence[int] = ...,
    layers: Iterable[int] | None = ...,
    heads: Heads = ...,
    processor: Any = ...,
    *,
    tower: Literal["vision"],
) -> Capturing[VisionCapture]: ...


def capture(
    target: Any,
    rows: Rows | Sequence[int] = "last",
    layers: Iterable[int] | None = None,
    heads: Heads = None,
    processor: Any = None,
    tower: Literal["text", "vision"] = "text",
) -> Capturing[Capture] | Capturing[VisionCapture]:
    """Capture the attention of chosen query rows.

    Example:
        >>> with capture(model, rows="question", layers=[8, 9]) as seen:  # doctest: +SKIP
        ...     model(**inputs)
        >>> seen.heat(sample=0, image=0)  # doctest: +SKIP
        >>> looking = capture(model, "class", layers=[22], tower="vision")  # doctest: +SKIP
        >>> with looking as seen:  # doctest: +SKIP
        ...     model(**inputs)
        >>> seen.heat(picture=0)  # doctest: +SKIP

    Args:
        target: A transformers model or pipeline.
        rows: "last" (the row that predicts the next token, at every step), "question" (prompt
            rows after the image) or "text" (question and generated rows). Of a vision tower:
            "class" (the class token's row of each picture), indices of each picture's rows, or
            "all", which holds whole maps: N x N numbers a head.
        layers: Layers to look at; all by default.
        heads: Heads to keep; all by default. "mean" keeps the mean over all of them.
        processor: Tells row-end and tile tokens of some families; see `regaze.hooks.attach`.
        tower: Tower whose attention is captured: "text", or "vision", which gives a
            `VisionCapture`.

    Raises:
        TypeError: The target can't be attached to.
        ValueError: A layer or head doesn't exist, an unknown kind of rows, a model whose
            images are no columns, or a vision tower that isn't known.
    """
    model, processor = split_target(target, processor)
    info = find_host(model, processor)
    if tower == "vision":
        return _capture_vision(info, rows, layers, heads)
    if tower != "text":
        raise ValueError(f'tower must be "text" or "vision", got {tower!r}')
    if rows not in ("last", "question", "text"):
        raise ValueError(
            f'rows of the text tower must be "last", "question" or "text", got {rows!r}'
        )
    if not info.has_images:
        raise ValueError(f"{info.model_type} has no image columns in its text tower to look at")
    chosen = [site.layer for site in info.sites]
    if layers is not None:
        named = check_layers(layers, info.n_layers, "layer")
        chosen = [info.site(layer).layer for layer in named]
    seen = Capture(getattr(model, "config", None), rows, _heads(heads, info.n_heads))
    return Capturing(seat_of(info), CaptureEdit(chosen, seen), seen)


def _capture_vision(
    info: Host, rows: Rows | Sequence[int], layers: Iterable[int] | None, heads: Heads
) -> Capturing[VisionCapture]:
    eye = info.eye
    if isinstance(rows, str):
        if rows not in ("class", "all"):
            raise ValueError(
                f'rows of the vision tower must be "class", "all" or indices, got {rows!r}'
            )
        named: Rows = rows
    else:
        named = tuple(sorted({int(row) for row in rows}))
    everything = range(eye.n_layers)
    chosen = everything if layers is None else check_layers(layers, eye.n_layers, "layer")
    seen = VisionCapture(named, _heads(heads, eye.n_heads))
    return Capturing(vision_seat(info), VisionCaptureEdit(chosen, seen), seen)


def _heads(heads: Heads, count: int) -> list[int] | Literal["mean"] | None:
    """Check which heads to keep."""
    if heads is None:
        return None
    if not isinstance(heads, str):
        return check_layers(heads, count, "head")
    if heads != "mean":
        raise ValueError(f'heads must be indices or "mean", got {heads!r}')
    return heads


__all__ = ["Capture", "Capturing", "PictureRows", "Rowset", "VisionCapture", "capture"]
