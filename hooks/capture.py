"""capture: look at attention without building the T x T map.

Only the rows asked for are computed, beside the model's own fused attention, and what the model
outputs is untouched bit for bit. Captured rows see the edits that were attached before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.attach import seat_of
from regaze.hooks.edits import Edit
from regaze.hooks.grids import GRID_INPUTS, grid_size, patch_grid
from regaze.hooks.host import Host, check_layers, find_host, split_target
from regaze.hooks.passes import Columns, Pass, RowPlan, Rows
from regaze.hooks.stack import LayerEntry, Stack
from regaze.hooks.tally import Entry
from regaze.hooks.tokens import Kind, TokenMap
from regaze.hooks.vision import vision_seat
from regaze.hooks.vision_capture import PictureRows, VisionCapture, VisionCaptureEdit

Seen = TypeVar("Seen")
Heads = Iterable[int] | Literal["mean"] | None


@dataclass(frozen=True)
class Rowset:
    """Attention weights of the captured rows of one layer in one forward pass.

    Attributes:
        layer: Layer index.
        rows: "B R" prompt columns of the query rows.
        valid: "B R" bool; samples with fewer rows are padded in front.
        weights: "B H R K" float32 on the CPU; key k is prompt column ``offset + k``. With
            ``heads="mean"`` H is 1.
        offset: See above; more than 0 once a sliding window has moved on.
    """

    layer: int
    rows: Tensor
    valid: Tensor
    weights: Tensor
    offset: int


@dataclass
class _Seen:
    """What was captured of one prompt."""

    inputs: Mapping[str, Any]
    batch: int
    tokens: TokenMap
    captured: list[Rowset] = field(default_factory=list)


class Capture:
    """Rows captured of the latest prompt, and its generated tokens if ``rows`` covers them.

    Attributes:
        rows: Which rows.
        heads: Which heads; None: all.
    """

    def __init__(self, config: Any, rows: Rows, heads: list[int] | Literal["mean"] | None) -> None:
        self.rows: Rows = rows
        self.heads = heads
        self._config = config
        self._seen_last: _Seen | None = None

    @property
    def captured(self) -> list[Rowset]:
        """What was captured, in the order in which the layers ran."""
        return [] if self._seen_last is None else self._seen_last.captured

    @property
    def tokens(self) -> TokenMap | None:
        """What the prompt's columns hold."""
        return None if self._seen_last is None else self._seen_last.tokens

    def begin(self, seen: _Seen) -> None:
        """Take up another prompt."""
        self._seen_last = seen

    def mass(self, sample: int = 0) -> Tensor:
        """Mean attention that the captured rows of a sample give each prompt column: "K".

        Averaged over layers, heads and rows; sums to 1 over columns.

        Raises:
            ValueError: Nothing was captured for this sample.
        """
        tokens = self._found(sample)
        total, count = torch.zeros(tokens.length), 0
        for one in self.captured:
            picked = one.weights[sample][:, one.valid[sample]]  # "H R K"
            keys = min(picked.shape[-1], tokens.length - one.offset)
            total[one.offset : one.offset + keys] += picked[..., :keys].sum((0, 1))
            count += picked.shape[0] * picked.shape[1]
        return total / max(count, 1)

    def heat(
        self, sample: int = 0, image: int = 0, inputs: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """`mass` on the patches of one image, as a grid over the picture: "rows cols".

        For the arguments and what it raises see `grid`.
        """
        return self.mass(sample)[self.grid(sample, image, inputs)].numpy()

    def grid(
        self, sample: int = 0, image: int = 0, inputs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Prompt columns of the patches of one image, as a grid over the picture: "rows cols".

        Args:
            sample: Batch row.
            image: Number of the image within that row's prompt.
            inputs: What the processor made of the batch. Needed after ``generate`` for models with
                pictures of many sizes: newer transformers encode them before they call the model,
                which then isn't told of their sizes.

        Raises:
            ValueError: There is no such image, or its grid can't be known.
        """
        tokens = self._found(sample)
        if not 0 <= image < tokens.n_images(sample):
            raise ValueError(
                f"sample {sample} has {tokens.n_images(sample)} images; there is no image {image}"
            )
        run = tokens.image_columns(sample, image)
        inside = tokens.kinds[sample, int(run[0]) : int(run[-1])] == Kind.SEPARATOR
        # Rows that were repeated (beams, a shared beginning) brought their image once.
        seen = self._seen_last
        brought = 1 if seen is None else seen.batch
        times = tokens.batch // (brought if inputs is None else len(inputs["input_ids"]))
        before = range(0, sample - sample % times, times)
        number = sum(tokens.n_images(row) for row in before) + image
        grid = patch_grid(
            self._config,
            len(run),
            grid_size(inputs or (seen.inputs if seen else {}), number),
            int(inside.sum()),
        )
        if grid is None:
            raise ValueError(
                f"the patch grid of this {getattr(self._config, 'model_type', 'model')}'s image "
                f"({len(run)} columns) can't be known; pass processor= to capture, and inputs= "
                "here: all that the processor made of the batch (image_sizes, image_grid_thw)"
            )
        return run[grid]

    def _found(self, sample: int) -> TokenMap:
        if self.tokens is None or not self.captured:
            raise ValueError(
                f"nothing was captured: no forward pass ran, or its prompt has no {self.rows!r} "
                "rows after an image"
            )
        if not 0 <= sample < self.tokens.batch:
            raise ValueError(f"the batch has {self.tokens.batch} rows; there is no row {sample}")
        return self.tokens


class _CaptureEdit(Edit):
    """Hands the rows of each prompt to a `Capture`."""

    reads_only = True

    def __init__(self, layers: Iterable[int], capture: Capture) -> None:
        super().__init__(frozenset(layers))
        self.rows = capture.rows
        self.capture = capture
        self.seen: _Seen | None = None
        self.past = 0

    def begin(self, pass_: Pass) -> None:
        self.past = pass_.past
        if pass_.prompt_start or self.seen is None:
            inputs = {k: v for k, v in pass_.inputs.items() if k in GRID_INPUTS}
            self.seen = _Seen(inputs, pass_.batch, pass_.tokens)
            self.capture.begin(self.seen)
        self.seen.tokens = pass_.tokens

    def select(self, rows: Tensor) -> _CaptureEdit:
        return self  # What was captured stays as it was.

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        acts = plan.acts[self.capture.rows]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        weights = logits.softmax(-1)
        heads = self.capture.heads
        if heads == "mean":
            weights = weights.mean(1, keepdim=True)
        elif heads is not None:
            weights = weights[:, heads]
        if self.seen is not None:
            rows = (plan.rows + self.past).cpu()
            self.seen.captured.append(
                Rowset(layer, rows, valid.cpu(), weights.detach().cpu(), columns.offset)
            )


class Capturing(Generic[Seen]):
    """A capture on a model, until the end of the ``with`` block or `detach`."""

    def __init__(self, stack: Stack, edit: Edit, capture: Seen) -> None:
        self.capture = capture
        self._stack = stack
        self._entry: LayerEntry = Entry(edit)
        try:
            stack.push(self._entry)
        except BaseException:
            stack.pop(self._entry)
            raise

    def __enter__(self) -> Seen:
        return self.capture

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Stop capturing; what was captured stays. A second call does nothing."""
        self._stack.pop(self._entry)


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
        tower: Whose attention: the "text" tower's, or the "vision" tower's, which gives a
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
    return Capturing(seat_of(info), _CaptureEdit(chosen, seen), seen)


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
