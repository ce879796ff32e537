"""One forward pass of a text tower: its columns, its rows, and those to recompute."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regaze.hooks.tokens import Kind, TokenMap

Rows = Literal["last", "latest", "question", "text", "image", "class", "all"] | tuple[int, ...]
"""Rows of a text tower; "class", "all" and indices are rows of a vision tower's pictures."""
Wanted = tuple[Rows, bool]
"""Rows that an edit asks for, and whether it only reads them."""
PlanKey = tuple[tuple[Wanted, ...], bool, torch.device]


class GrowingMask:
    """A mask over prompt columns that can be looked at beyond their end, where it is zero.

    Text grows by one column a step; room is added in larger pieces.
    """

    _ROOM = 256

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def view(self, offset: int, count: int) -> Tensor:
        """Columns ``offset ... offset + count`` of the last dimension."""
        mask = self._mask  # Two threads may grow it at once; each reads its own.
        missing = offset + count - mask.shape[-1]
        if missing > 0:
            self._mask = mask = nn.functional.pad(mask, (0, missing + self._ROOM))
        return mask[..., offset : offset + count]

    def select(self, rows: Tensor) -> GrowingMask:
        """The mask of some batch rows."""
        return GrowingMask(self._mask[rows.to(self._mask.device)])


@dataclass(frozen=True)
class Picture:
    """One picture as a vision tower sees it; a tile of one, or a frame, is a picture of its own.

    Attributes:
        length: Number of columns: patches in the order in which the tower has them, behind the
            class token where there is one, and padding.
        grid: "rows cols" columns of its patches, as they lie over the picture.
    """

    length: int
    grid: Tensor


@dataclass(frozen=True)
class Columns:
    """Bool masks "B 1 1 K" over the key columns of one layer's attention call.

    Attributes:
        image: Image patches.
        system: Text before the first image; nothing in a vision tower.
        seen: Columns that the rows see, "B 1|H R K"; None: all of them.
        offset: The prompt's (in a vision tower the picture's) column that key 0 is; more than 0
            once a sliding window has moved on, or where a picture is seen in windows.
        class_token: The class token's column, in a vision tower.
        pictures: Picture of the pass that each batch row is, in a vision tower.
    """

    image: Tensor
    system: Tensor
    offset: int = 0
    class_token: Tensor | None = None
    pictures: tuple[int, ...] = ()
    seen: Tensor | None = None

    def of(self, mask: GrowingMask) -> Tensor:
        """A mask of the edit's own, "B ... K", at this call's keys."""
        return mask.view(self.offset, self.image.shape[-1])


class PromptMasks:
    """Column masks and row plans, which stay the same while a prompt's answer is decoded.

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

    @functools.cached_property
    def device_type(self) -> str:
        """Kind of device that the rows are on; asked for in every layer, and slow to find out."""
        return self.rows.device.type

    def parts(self, count: int) -> Iterator[RowPlan]:
        """The plan in pieces of at most ``count`` rows."""
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
class Pass:
    """One forward pass of the text tower: a prompt, a chunk of it, or a decode step.

    For a vision tower's see `regaze.hooks.pictures.VisionPass`.

    Attributes:
        tokens: All columns up to and including this block (real batch rows only).
        past: Columns before this block.
        length: Query rows Q in this block.
        index: Blocks since the prompt began; 0 is the (first) prefill block.
        prompt_end: The block ends the prompt, or is a decode step.
        n_last: Number of trailing rows that count as "last": more than one when assisted decoding
            checks several candidates at once.
        device: Device on which the block enters the tower; a layer may run elsewhere.
        masks: Shared by the steps of one prompt.
        inputs: Arguments of the call of the model that was attached to, as far as they are known.
        ids: "B P" token ids that were read, -1 for generated text; on the CPU.
        pictures: Pictures that a vision tower is given; empty for a text tower.
        again: The prompt's last rows are run a second time; see `regaze.hooks.again`.
        ahead: In a step that only looks ahead (`Edit.looks_ahead`), bool "B": which samples have
            not come to an end yet.
    """

    tokens: TokenMap
    past: int
    length: int
    index: int
    prompt_end: bool
    n_last: int
    device: torch.device
    masks: PromptMasks
    inputs: Mapping[str, Any] = field(default_factory=dict)
    ids: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long, device="cpu"))
    pictures: tuple[Picture, ...] = ()
    again: bool = False
    ahead: Tensor | None = None
    _columns: dict[tuple[int, int, torch.device], Columns] = field(default_factory=dict)
    _plans: dict[PlanKey, RowPlan | None] = field(default_factory=dict)
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        if self.decodes:
            # One new row: the same plan at every step.
            self._plans = self.masks.plans

    @property
    def prompt_start(self) -> bool:
        """True if a new prompt begins; edits drop what they know of the one before."""
        return self.past == 0

    @property
    def decodes(self) -> bool:
        """True if the block is one generated token per sample."""
        return self.length == 1 and self.tokens.generated > 0

    @property
    def batch(self) -> int:
        """Number of batch rows B."""
        return self.tokens.batch

    @property
    def last_rows(self) -> Tensor:
        """Row index "B" (on the CPU) of each sample's last real token that isn't a draft's.

        0 for a sample without any in this block; it has no row that counts as "last" either.
        """
        if self._last is None:
            real = self._block(~self.tokens.is_kind(Kind.PAD))
            number = torch.arange(1, self.length + 1, device="cpu")
            known = number <= self.length - self.n_last + 1
            self._last = (real * known * number).argmax(1)
        return self._last

    def scored(self, kept: int) -> Tensor:
        """Return the indices "B R", among the block's last ``kept`` rows, of its "last" ones.

        R is `n_last`, or ``kept`` if that is less; all samples count, with images or without.

        Raises:
            ValueError: A sample's last rows weren't kept.
        """
        real = self._block(~self.tokens.is_kind(Kind.PAD)).int()
        from_end = real.flip(1).cumsum(1).flip(1)
        last = (real == 1) & (from_end <= self.n_last)
        count = min(self.n_last, kept)
        if bool((last[:, -kept:].sum(1) < count).any()):
            raise ValueError(
                f"scores of the last {kept} rows were asked for, and a prompt of this batch ends "
                "before them: pad it on the left"
            )
        return last[:, -kept:].int().argsort(dim=1, stable=True)[:, -count:]

    def columns(self, offset: int, n_keys: int, device: torch.device) -> Columns:
        """Masks for a layer whose keys are columns ``offset ... offset + n_keys``."""
        key = (offset, n_keys, device)
        if key not in self._columns:
            image, system = (mask.view(offset, n_keys) for mask in self.masks.on(device))
            self._columns[key] = Columns(image, system, offset)
        return self._columns[key]

    def plan(self, asked: Iterable[Wanted], device: torch.device) -> RowPlan | None:
        """Rows to recompute for the edits that ask for these; None if there are none."""
        key = (tuple(asked), self.prompt_end, device)
        if key not in self._plans:
            self._plans[key] = self._make_plan(tuple(dict.fromkeys(key[0])), device)
        return self._plans[key]

    def last_plan(self, device: torch.device) -> RowPlan:
        """The `n_last` last rows of all samples, for edits of any rows of a text tower."""
        rows = self.scored(self.length)
        every = torch.ones_like(rows, dtype=torch.bool)
        acts: dict[Rows, Tensor | None] = {}
        for name in ("last", "latest", "question", "text", "image"):
            picked = self._select(name).gather(1, rows)
            acts[name] = None if picked.all() else picked[:, None, :, None].to(device)
        return RowPlan(rows.to(device), every.to(device), every.to(device), acts, covers_all=True)

    def some_rows(self, count: int, device: torch.device) -> RowPlan:
        """At most so many rows, spread over the block; those of padding aren't valid."""
        rows = torch.linspace(
            0, self.length - 1, min(count, self.length), dtype=torch.float64, device="cpu"
        ).long()
        rows = rows.expand(self.batch, -1).contiguous()
        real = self._block(~self.tokens.is_kind(Kind.PAD)).gather(1, rows)
        none = torch.zeros_like(real).to(device)
        return RowPlan(rows.to(device), real.to(device), none, {}, covers_all=False)

    def _make_plan(self, wanted: tuple[Wanted, ...], device: torch.device) -> RowPlan | None:
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
        if selector == "image":
            return self._block(self.tokens.is_kind(Kind.IMAGE))
        last = torch.zeros_like(after)
        if self.prompt_end:
            real = self._block(~self.tokens.is_kind(Kind.PAD)).int()
            from_end = real.flip(1).cumsum(1).flip(1)
            last = (real == 1) & (from_end <= self.n_last)
        return last if selector == "latest" else last & self.tokens.has_image[:, None]

    def _block(self, mask: Tensor) -> Tensor:
        return mask[:, self.past : self.past + self.length]
