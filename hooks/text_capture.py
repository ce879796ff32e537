"""Captures of the text tower's attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regaze.hooks.edits import Edit
from regaze.hooks.grids import GRID_INPUTS, grid_size, patch_grid
from regaze.hooks.passes import Columns, Pass, RowPlan, Rows
from regaze.hooks.tokens import Kind, TokenMap


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
    """The rows captured of one prompt."""

    inputs: Mapping[str, Any]
    batch: int
    tokens: TokenMap
    captured: list[Rowset] = field(default_factory=list)


class Capture:
    """Rows captured of the latest prompt, and its generated tokens if ``rows`` covers them.

    Attributes:
        rows: Rows to capture.
        heads: Heads to capture; None: all.
    """

    def __init__(self, config: Any, rows: Rows, heads: list[int] | Literal["mean"] | None) -> None:
        self.rows: Rows = rows
        self.heads = heads
        self._config = config
        self._seen_last: _Seen | None = None

    @property
    def captured(self) -> list[Rowset]:
        """The rows captured, in the order in which the layers ran."""
        return [] if self._seen_last is None else self._seen_last.captured

    @property
    def tokens(self) -> TokenMap | None:
        """The kinds of the prompt's columns; None before the first prompt."""
        return None if self._seen_last is None else self._seen_last.tokens

    def begin(self, seen: _Seen) -> None:
        """Take up another prompt."""
        self._seen_last = seen

    def mass(self, sample: int = 0, before: int | None = None) -> Tensor:
        """Mean attention that the captured rows of a sample give each prompt column: "K".

        Averaged over layers, heads and rows; sums to 1 over columns.

        Args:
            sample: Batch row.
            before: Leave out rows from this column on. A batch is generated until its longest
                answer ends; what ended before goes on with padding, which is no answer.

        Raises:
            ValueError: Nothing was captured for this sample.
        """
        tokens = self._found(sample)
        total, count = torch.zeros(tokens.length, dtype=torch.float32, device="cpu"), 0
        for one in self.captured:
            valid = one.valid[sample]
            if before is not None:
                valid = valid & (one.rows[sample] < before)
            picked = one.weights[sample][:, valid]  # "H R K"
            keys = min(picked.shape[-1], tokens.length - one.offset)
            total[one.offset : one.offset + keys] += picked[..., :keys].sum((0, 1))
            count += picked.shape[0] * picked.shape[1]
        return total / max(count, 1)

    def heat(
        self,
        sample: int = 0,
        image: int = 0,
        inputs: Mapping[str, Any] | None = None,
        before: int | None = None,
    ) -> NDArray[np.float32]:
        """`mass` on the patches of one image, as a grid over the picture: "rows cols".

        For the arguments and what it raises see `grid` and `mass`.
        """
        return self.mass(sample, before)[self.grid(sample, image, inputs)].numpy()

    def grid(
        self, sample: int = 0, image: int = 0, inputs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Prompt columns of the patches of one image, as a grid over the picture: "rows cols".

        Args:
            sample: Batch row.
            image: Number of the image within that row's prompt.
            inputs: Output of the processor for the batch. Needed after ``generate`` for models with
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
        # Rows that were repeated (beams, a shared beginning) brought their image once.
        seen = self._seen_last
        brought = 1 if seen is None else seen.batch
        times = tokens.batch // (brought if inputs is None else len(inputs["input_ids"]))
        before = range(0, sample - sample % times, times)
        number = sum(tokens.n_images(row) for row in before) + image
        size = grid_size(inputs or (seen.inputs if seen else {}), number)
        grid = image_grid(self._config, tokens, sample, image, size)
        if grid is None:
            raise ValueError(
                f"the patch grid of this {getattr(self._config, 'model_type', 'model')}'s image "
                f"({len(tokens.image_columns(sample, image))} columns) can't be known; pass "
                "processor= to capture, and inputs= here: all that the processor made of the batch "
                "(image_sizes, image_grid_thw)"
            )
        return grid

    def _found(self, sample: int) -> TokenMap:
        if self.tokens is None or not self.captured:
            raise ValueError(
                f"nothing was captured: no forward pass ran, or its prompt has no {self.rows!r} "
                "rows after an image"
            )
        if not 0 <= sample < self.tokens.batch:
            raise ValueError(f"the batch has {self.tokens.batch} rows; there is no row {sample}")
        return self.tokens


def image_grid(
    config: Any, tokens: TokenMap, sample: int, image: int, size: Tensor | None
) -> Tensor | None:
    """Prompt columns of the patches of one image, as a grid over the picture: "rows cols".

    Args:
        config: The model's config.
        tokens: The prompt's columns.
        sample: Batch row.
        image: Number of the image within that row's prompt.
        size: Result of `grid_size` for the image.

    Returns:
        None if it can't be known.
    """
    run = tokens.image_columns(sample, image)
    inside = tokens.kinds[sample, int(run[0]) : int(run[-1])] == Kind.SEPARATOR
    grid = patch_grid(config, len(run), size, int(inside.sum()))
    return None if grid is None else run[grid]


class CaptureEdit(Edit):
    """Hands the rows of each prompt to a `Capture`."""

    reads_only = True

    def __init__(self, layers: Iterable[int], capture: Capture) -> None:
        super().__init__(frozenset(layers))
        self.rows = capture.rows
        self.capture = capture
        self.seen: _Seen | None = None
        self.past = 0

    def begin(self, pass_: Pass) -> None:
        """Take up a block, or another prompt."""
        self.past = pass_.past
        if pass_.prompt_start or self.seen is None:
            inputs = {k: v for k, v in pass_.inputs.items() if k in GRID_INPUTS}
            self.seen = _Seen(inputs, pass_.batch, pass_.tokens)
            self.capture.begin(self.seen)
        self.seen.tokens = pass_.tokens

    def select(self, rows: Tensor) -> CaptureEdit:
        """Return the edit itself: what was captured stays as it was."""
        return self

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        """Keep the rows' weights."""
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
