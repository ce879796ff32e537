"""The vision tower's seat: edits of its attention, and its forward passes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.check import check_rows
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit, overrides
from regaze.hooks.host import Host
from regaze.hooks.keywords import sees_keywords
from regaze.hooks.pictures import Eye, VisionPass, read_pictures
from regaze.hooks.rows import NO_EDITS, RowJob, Stages, Working, overwrite
from regaze.hooks.stack import LayerEntry, Stack
from regaze.hooks.tally import due

_SEATS: MutableMapping[nn.Module, VisionSeat] = weakref.WeakKeyDictionary()


class VisionSeat(Stack):
    """The ordered stack of edits of one vision tower."""

    kind = "vision"
    note = "in the vision tower, where each picture is a prompt"

    def __init__(self, model: nn.Module, eye: Eye) -> None:
        super().__init__(model, eye.tower, eye.paths)
        self._vision = eye.vision

    def _check(self, entry: LayerEntry) -> None:
        work = entry.work
        name = type(work).__name__
        if work.null_prompt or work.scores or overrides(work, "see_hidden"):
            raise ValueError(
                f"{name} edits a vision tower, which has no prompts, scores or residual stream to "
                "show: only edit_logits, see_rows and scale_heads act there"
            )
        if work.rows in ("last", "question", "text", "image"):
            raise ValueError(
                f'{work.rows!r} rows are of a text tower; {name} edits a vision tower: take "class"'
                ', "all" or indices'
            )
        if work.rows == "class" and not self._vision.class_token:
            raise ValueError(
                f"the vision tower ({type(self._alive()).__name__}) has no class token, so no "
                'row "class": take "all" or indices'
            )
        if isinstance(work.rows, tuple) and min(work.rows, default=0) < 0:
            raise ValueError(f"there is no row {min(work.rows)}: rows count from 0")
        unknown = sorted(work.layers - set(self._paths))
        if unknown:
            raise ValueError(
                f"there is no layer {unknown[0]} in the vision tower: it has layers 0 to "
                f"{len(self._paths) - 1}"
            )

    @torch.compiler.disable
    @sees_keywords
    def _begin(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if tower is not self.tower():
            return
        self._here.running = None
        if self._here.paused or not self.entries:
            return
        self._check_names()
        given = dict(zip(self._names, args, strict=False)) | kwargs
        pass_ = read_pictures(tower, self._vision, given)
        works = {}
        for entry in self.entries:
            pass_.check(entry.work.rows)
            works[entry] = edit = entry.work.fork()
            edit.begin(pass_)
            entry.tally.begin(len(pass_.pictures))
        packed = self._vision.layout != "batch"
        self._here.running = Looking(pass_, works, self._by_layer, packed, self._checked)

    def _end(self, tower: nn.Module, args: Any, output: Any) -> None:
        if tower is not self.tower():
            return
        running, self._here.running = self._here.running, None
        if output is not None and running is not None:
            running.finish()


@dataclass(frozen=True)
class _Piece:
    """The part of one attention call for some rows that attend to each other alone.

    Attributes:
        pass_: The pass, as far as they go.
        call: The call, likewise.
        rows: Slice of the call's rows.
    """

    pass_: VisionPass
    call: Call
    rows: slice


@dataclass(eq=False)
class Looking:
    """A forward pass of a vision tower, while it runs.

    Attributes:
        pass_: Pass as methods see it.
        works: The state of each edit in it.
        by_layer: The entries that act at each layer, in order.
        packed: Pictures stand one behind the other in one sequence; attention may be called for
            each, or for parts of it.
        checked: Layers whose rows were compared with the kernel's; shared by all passes.
    """

    pass_: VisionPass
    works: Mapping[LayerEntry, Edit]
    by_layer: Mapping[int, Sequence[LayerEntry]]
    packed: bool
    checked: set[tuple[int, bool]]
    _seen: Counter[int] = field(default_factory=Counter)
    _checks: set[int] = field(default_factory=set)
    _asked: Counter[tuple[LayerEntry, int]] = field(default_factory=Counter)
    _masks: list[Any] = field(default_factory=list)

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """The stock attention with this layer's edits written over it.

        Raises:
            RuntimeError: The layer runs otherwise than is known here, so its edit wouldn't be
                exact.
        """
        out, weights = call.run(stock)
        works = [(entry, self.works[entry]) for entry in self.by_layer.get(layer, ())]
        if not works:
            return out, weights
        if (layer, False) not in self.checked:
            self._checks.add(layer)
        outs = []
        for piece in list(self._pieces(layer, call)):
            here = None if weights is None else weights[:, :, piece.rows, piece.rows]
            new, new_weights = self._answer(layer, piece, works, (out[:, piece.rows], here))
            outs.append(new)
            if weights is not None and new_weights is not None and new_weights is not here:
                weights = weights.clone()
                weights[:, :, piece.rows, piece.rows] = new_weights
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1), weights

    def _pieces(self, layer: int, call: Call) -> Iterator[_Piece]:
        """A call in parts of which each is one picture, or a part of one, or all pictures at once.

        Raises:
            RuntimeError: It isn't what was entered.
        """
        batch, rows, keys = call.query.shape[0], call.query.shape[2], call.key.shape[2]
        start = self._seen[layer]
        self._seen[layer] += rows
        if not self.packed:
            if (batch, rows, keys, start) != (self.pass_.batch, self.pass_.length, rows, 0):
                raise self._strange(layer, call)
            yield _Piece(self.pass_, call, slice(0, rows))
            return
        ends = [0, *accumulate(one.length for one in self.pass_.pictures)]
        if batch != 1 or keys != rows or start + rows > ends[-1]:
            raise self._strange(layer, call)
        for first, end in self._spans(layer, call, start, ends):
            number = sum(one <= first for one in ends[1:])
            if end > ends[number + 1]:
                raise self._strange(layer, call)
            cut = slice(first - start, end - start)
            part = self.pass_.part(number, first - ends[number], end - first)
            yield _Piece(part, _cut(call, cut), cut)

    def _spans(
        self, layer: int, call: Call, start: int, ends: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Return the spans of the whole sequence whose rows see each other in a call."""
        rows = call.query.shape[2]
        bounds = call.kwargs.get("cu_seq_lens_q")
        if bounds is not None:
            # Kernels for packed sequences are told where each begins.
            if int(bounds[-1]) != rows:
                raise self._strange(layer, call)
            edges = [start + int(one) for one in bounds.tolist()]
        elif isinstance(call.mask, Tensor):
            edges = [start, *(one for one in ends[1:] if start < one < start + rows), start + rows]
            self._apart(layer, call, [one - start for one in edges])
        else:
            edges = [start, start + rows]
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if a < b]

    def _apart(self, layer: int, call: Call, edges: Sequence[int]) -> None:
        """See that a mask keeps pictures apart."""
        mask = call.mask
        if any(mask is one for one in self._masks):
            return
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        for first, end in zip(edges[:-1], edges[1:], strict=True):
            if bool(shown[..., first:end, :first].any() | shown[..., first:end, end:].any()):
                raise self._strange(layer, call)
        self._masks.append(mask)

    def _strange(self, layer: int, call: Call) -> RuntimeError:
        batch, rows, keys = call.query.shape[0], call.query.shape[2], call.key.shape[2]
        sizes = [one.length for one in self.pass_.pictures]
        return RuntimeError(
            f"layer {layer} of the vision tower ({type(call.module).__name__}) attends from "
            f"{batch} x {rows} rows to {keys} columns in a call where pictures of {sizes} columns "
            "entered, so regaze can't tell which rows it is given; it can't be edited exactly"
        )

    def _answer(
        self, layer: int, piece: _Piece, works: Sequence[Working], stock: Attention
    ) -> Attention:
        """The rows of one piece, edited."""
        pass_, call = piece.pass_, piece.call
        device = call.query.device
        rows = Stages.of(
            [(e, w) for e, w in works if w.rows is not None and w.active(layer, pass_)]
        )
        scaling = [(e, w) for e, w in works if overrides(w, "scale_heads")]
        plan = pass_.plan(rows.wanted, device) if rows.wanted else None
        checks = layer in self._checks
        # A factor on all rows is checked on one.
        first = pass_.plan([((pass_.offset,), True)], device) if scaling and checks else None
        out, weights = stock
        if looks := plan or first:
            edits, asked = (rows, self._asked) if plan else (NO_EDITS, None)
            done = RowJob(call, edits, looks, layer, pass_, 0, asked, plain=checks).run()
            if done.plain is not None:
                check_rows(call, layer, out, done.plain, looks.rows, looks.valid)
                self.checked.add((layer, False))
            if plan and not all(w.reads_only for _, w in rows.every):
                out, weights = overwrite((out, weights), done, plan)
        for entry, edit in scaling:
            with torch.no_grad():
                factor = edit.scale_heads(layer, out, None, pass_)
            if factor is not None:
                self._measure(entry, layer, factor)
                out = out * factor[:, None, :, None].to(out.dtype)
        return out, weights

    def _measure(self, entry: LayerEntry, layer: int, factor: Tensor) -> None:
        entry.tally.count(layer)
        self._asked[entry, layer] += 1
        if due(self._asked[entry, layer]):
            entry.tally.add(layer, (factor.float() - 1).abs())

    def finish(self) -> None:
        """End the pass: see that every row was seen in every layer that is edited.

        Raises:
            RuntimeError: One wasn't.
        """
        total = self.pass_.length
        if self.packed:
            total = sum(one.length for one in self.pass_.pictures)
        missing = [layer for layer in self.by_layer if self._seen[layer] != total]
        if missing and total:
            raise RuntimeError(
                f"layers {missing} of the vision tower didn't call transformers' attention "
                "interface for all rows in this forward pass, so their edits were skipped: leave "
                "them out"
            )


def _cut(call: Call, rows: slice) -> Call:
    """A call of some rows that see each other alone."""
    if rows == slice(0, call.query.shape[2]):
        return call
    mask = call.mask[..., rows, rows] if isinstance(call.mask, Tensor) else call.mask
    query, key, value = (x[:, :, rows] for x in (call.query, call.key, call.value))
    return replace(call, query=query, key=key, value=value, mask=mask)


def vision_seat(host: Host) -> VisionSeat:
    """The one seat of a model's vision tower, made on first use.

    Raises:
        ValueError: The tower isn't known.
    """
    eye = host.eye
    seat = _SEATS.get(eye.tower)
    if seat is None or not seat.busy():
        if seat is not None:
            seat.uninstall()  # An interrupt may have kept it from finishing.
        seat = _SEATS[eye.tower] = VisionSeat(host.model, eye)
    return seat
