"""What an edit sees and what it may do; the seat calls it, methods subclass it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regaze.hooks.tokens import Kind, TokenMap

Rows = Literal["last", "question", "text"]
PlanKey = tuple[tuple[tuple[Rows, bool], ...], bool, torch.device]


@dataclass(frozen=True)
class TowerInfo:
    """Facts about a model's text tower that specs are checked against.

    Attributes:
        model: The model that was attached to.
        tower: Its text decoder, the module with ``.layers``.
        processor: The processor or tokenizer, if the caller gave one.
        model_type: The config's ``model_type``.
        n_layers: Decoder layers.
        n_heads: Query heads per layer.
        n_kv_heads: Key/value heads per layer.
        hidden_size: Width of the residual stream.
        image_columns: Whether image patches are columns of the tower's self-attention. False for
            Q-Former outputs (resampled: no patch behind a column) and cross-attention models.
        image_ids: Token ids that stand for image or video features.
    """

    model: nn.Module
    tower: nn.Module
    processor: Any
    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_size: int
    image_columns: bool
    image_ids: frozenset[int]


class GrowingMask:
    """A mask over prompt columns that can be looked at beyond their end, where it is zero.

    Text grows by one column a step; room is added in larger pieces.
    """

    _ROOM = 256

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def view(self, offset: int, count: int) -> Tensor:
        """Columns ``offset ... offset + count`` of the last dimension."""
        missing = offset + count - self._mask.shape[-1]
        if missing > 0:
            self._mask = nn.functional.pad(self._mask, (0, missing + self._ROOM))
        return self._mask[..., offset : offset + count]


@dataclass(frozen=True)
class Columns:
    """Bool masks "B 1 1 K" over the key columns of one layer's attention call.

    Attributes:
        image: Image patches.
        system: Text before the first image.
        offset: The prompt column that key 0 is; more than 0 once a sliding window has moved on.
    """

    image: Tensor
    system: Tensor
    offset: int = 0

    def of(self, mask: GrowingMask) -> Tensor:
        """A mask of the edit's own at this call's keys."""
        return mask.view(self.offset, self.image.shape[-1])


class PromptMasks:
    """What stays the same while a prompt's answer is decoded: column masks and row plans.

    Kept for each device that a layer runs on; a large model may be spread over several.
    """

    def __init__(self, tokens: TokenMap) -> None:
        self._kinds = tokens.kinds[:, None, None]
        self._masks: dict[torch.device, tuple[GrowingMask, GrowingMask]] = {}
        self.plans: dict[PlanKey, RowPlan | None] = {}

    def on(self, device: torch.device) -> tuple[GrowingMask, GrowingMask]:
        """Masks of image and system columns."""
        if device not in self._masks:
            kinds = self._kinds.to(device)
            self._masks[device] = (
                GrowingMask(kinds == Kind.IMAGE),
                GrowingMask(kinds == Kind.SYSTEM),
            )
        return self._masks[device]


@dataclass(frozen=True)
class RowPlan:
    """The query rows that a set of edits recomputes in one block.

    Attributes:
        rows: "B R" row indices within the block.
        valid: "B R" bool; the others only pad ragged samples, in front of the valid ones.
        written: "B R" bool: rows that an edit may change; the others are only read.
        acts: Per selector, "B 1 R 1" bool: where its edits apply; None means everywhere.
        covers_all: Every row of the block is written, so the stock kernel isn't needed.
    """

    rows: Tensor
    valid: Tensor
    written: Tensor
    acts: dict[Rows, Tensor | None]
    covers_all: bool

    def parts(self, count: int) -> Iterator[RowPlan]:
        """The plan in pieces of at most ``count`` rows."""
        if self.rows.shape[1] <= count:
            yield self
            return
        for start in range(0, self.rows.shape[1], count):
            cut = slice(start, start + count)
            yield RowPlan(
                self.rows[:, cut],
                self.valid[:, cut],
                self.written[:, cut],
                {k: None if v is None else v[:, :, cut] for k, v in self.acts.items()},
                self.covers_all,
            )


@dataclass
class Step:
    """One forward pass of the text tower: a prompt, a chunk of it, or a decode step.

    Attributes:
        tokens: All columns up to and including this block (real batch rows only).
        past: Columns before this block.
        length: Query rows Q in this block.
        index: Blocks since the prompt began; 0 is the (first) prefill block.
        prompt_end: The block ends the prompt, or is a decode step.
        n_last: How many trailing rows count as "last": those whose logits are asked for (more
            than one when assisted decoding checks several candidates at once).
        device: Where the block enters the tower; a layer may run elsewhere.
        masks: Shared by the steps of one prompt.
    """

    tokens: TokenMap
    past: int
    length: int
    index: int
    prompt_end: bool
    n_last: int
    device: torch.device
    masks: PromptMasks
    _columns: dict[tuple[int, int, torch.device], Columns] = field(default_factory=dict)
    _plans: dict[PlanKey, RowPlan | None] = field(default_factory=dict)
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        if self.decodes:
            # One new row: the same plan at every step.
            self._plans = self.masks.plans

    @property
    def prompt_start(self) -> bool:
        """Whether a new prompt begins; edits drop what they know of the one before."""
        return self.past == 0

    @property
    def decodes(self) -> bool:
        """Whether the block is one generated token per sample."""
        return self.length == 1 and self.tokens.generated > 0

    @property
    def batch(self) -> int:
        """Number of batch rows B."""
        return self.tokens.batch

    @property
    def last_rows(self) -> Tensor:
        """Row index "B" (on the CPU) of each sample's last real token that isn't a draft's."""
        if self._last is None:
            real = self._block(~self.tokens.is_kind(Kind.PAD))
            known = torch.arange(1, self.length + 1) <= self.length - self.n_last + 1
            self._last = (real * known * torch.arange(1, self.length + 1)).argmax(1)
        return self._last

    def columns(self, offset: int, n_keys: int, device: torch.device) -> Columns:
        """Masks for a layer whose keys are columns ``offset ... offset + n_keys``."""
        key = (offset, n_keys, device)
        if key not in self._columns:
            image, system = (mask.view(offset, n_keys) for mask in self.masks.on(device))
            self._columns[key] = Columns(image, system, offset)
        return self._columns[key]

    def plan(self, edits: Sequence[Edit], device: torch.device) -> RowPlan | None:
        """Rows to recompute for these edits; None if there are none."""
        wanted = tuple(sorted({(e.rows, e.reads_only) for e in edits if e.rows is not None}))
        key = (wanted, self.prompt_end, device)
        if key not in self._plans:
            self._plans[key] = self._make_plan(wanted, device)
        return self._plans[key]

    def _make_plan(
        self, wanted: tuple[tuple[Rows, bool], ...], device: torch.device
    ) -> RowPlan | None:
        chosen = {name: self._select(name) for name, _ in wanted}
        union = torch.stack(list(chosen.values())).any(0)
        count = int(union.sum(1).max())
        if count == 0:
            return None
        written = torch.zeros_like(union)
        for name, reads_only in wanted:
            if not reads_only:
                written |= chosen[name]
        # Stable sort brings each sample's chosen rows to the end, in order.
        rows = union.int().argsort(dim=1, stable=True)[:, -count:]
        acts: dict[Rows, Tensor | None] = {}
        for name, mask in chosen.items():
            picked = mask.gather(1, rows)
            acts[name] = None if picked.all() else picked[:, None, :, None].to(device)
        return RowPlan(
            rows.to(device),
            union.gather(1, rows).to(device),
            written.gather(1, rows).to(device),
            acts,
            covers_all=bool(written.all()),
        )

    def _select(self, selector: Rows) -> Tensor:
        after = self._block(self.tokens.after_image)
        if selector == "text":
            return after
        if selector == "question":
            return after & self._block(self.tokens.is_kind(Kind.QUESTION))
        last = torch.zeros_like(after)
        if self.prompt_end:
            real = self._block(~self.tokens.is_kind(Kind.PAD)).int()
            from_end = real.flip(1).cumsum(1).flip(1)
            last = (real == 1) & (from_end <= self.n_last)
        return last & self.tokens.has_image[:, None]

    def _block(self, mask: Tensor) -> Tensor:
        return mask[:, self.past : self.past + self.length]


def check_layers(given: Iterable[int], size: int, what: str) -> list[int]:
    """Check indices of layers or heads.

    Raises:
        ValueError: One doesn't exist.
    """
    indices = sorted({int(i) for i in given})
    for index in indices:
        if not 0 <= index < size:
            raise ValueError(f"there is no {what} {index}: the model has {what}s 0 to {size - 1}")
    return indices


class Edit:
    """What one bound method does inside one model. Override what the method needs.

    A new object is made for each attachment; state kept between calls belongs to one prompt and
    is dropped in `begin` when ``step.prompt_start``.

    Attributes:
        layers: Layers at which the edit acts.
        rows: Which query rows `edit_logits` gets: "last" (last prompt row and decode rows),
            "question" (prompt text after the image), "text" (that and decode rows), or None for
            no row edit.
        reads_only: The edit only looks, in `see_rows`; the model's output stays as it is.
        watches_hidden: Whether `see_hidden` wants the layers' inputs.
        null_prompt: Whether prompts must also be run without their images; see `scale_heads`.
        null_positions: Then "drop" renumbers positions as if the image tokens were not there,
            "mask" keeps them.
    """

    rows: Rows | None = None
    reads_only: bool = False
    watches_hidden: bool = False
    null_prompt: bool = False
    null_positions: Literal["drop", "mask"] = "drop"
    scales_heads: bool = False

    def __init__(self, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)

    def begin(self, step: Step) -> None:
        """A block begins."""

    def see_hidden(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Read the residual stream "B Q E" entering a layer, before its norm."""

    def active(self, layer: int, step: Step) -> bool:
        """Whether `edit_logits` has anything to do here; False keeps the stock output."""
        return True

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        """Return edited logits "B H R K" (float32, -inf where masked); never in place."""
        return logits

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        """Look at the chosen rows' logits "B H R K"; called instead of `edit_logits`."""

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, step: Step
    ) -> Tensor | None:
        """Return a factor "B H" for all rows of each head's output, or None.

        Args:
            layer: Layer index.
            out: "B Q H D", head outputs before the output projection.
            null: "B H D", the same at the prompt's last token when run without its images; given
                on prompts with images of an edit with ``null_prompt``. That run gets the same
                factors.
            step: The block.
        """
        return None
