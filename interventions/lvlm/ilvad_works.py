"""ILVAD's readers and edits inside a model; the formula is in `ilvad`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from regaze.hooks.edits import Edit
from regaze.hooks.handover import Handover
from regaze.hooks.passes import Columns, GrowingMask, Pass, RowPlan
from regaze.hooks.tokens import Kind
from regaze.interventions.lvlm.ilvad_maps import (
    best_half,
    came_into_view,
    look,
    seen_patches,
    text_factors,
)

if TYPE_CHECKING:
    from regaze.interventions.lvlm.ilvad import ILVAD

_TINY = 1e-30


def works(spec: ILVAD, every: Sequence[int]) -> tuple[Edit, ...]:
    """The reader of the prompt and the edit.

    Args:
        spec: The resolved settings.
        every: All layers that attend; none if nothing is to be raised.
    """
    found: Handover[list[_Seen]] = Handover()
    return _Read(every, found), _Ground(spec, every, found)


@dataclass(frozen=True)
class _Seen:
    """Attention of the question's rows on the image at one layer.

    Attributes:
        layer: The layer.
        at: "B R", their columns; -1 where there is none.
        columns: "J", columns that are the image's in some sample.
        weights: "B H R J", 0 where they aren't in this one.
    """

    layer: int
    at: Tensor
    columns: Tensor
    weights: Tensor


@dataclass
class _Ahead:
    """Attention of the first answer on the image, step by step; all copies of the work share it.

    Attributes:
        speaking: Bool "B" of each step: which answers go on.
        maps: One map per step and layer, "B K", 0 off the image.
    """

    speaking: list[Tensor] = field(default_factory=list)
    maps: list[dict[int, Tensor]] = field(default_factory=list)


class _Read(Edit):
    """Reads what the question sees of the image."""

    rows = "question"
    reads_only = True

    def __init__(self, layers: Sequence[int], found: Handover[list[_Seen]]) -> None:
        super().__init__(layers)
        self.found = found
        self.seen: list[_Seen] = []
        self.past = 0
        self.answered = False

    def begin(self, pass_: Pass) -> None:
        self.past = pass_.past
        if pass_.prompt_start or pass_.decodes:
            self.seen, self.answered = [], pass_.decodes
        if self.layers and not pass_.decodes and bool(pass_.tokens.has_image.any()):
            _refuse(pass_, self.answered)
            # What was rolled back is forgotten.
            old = (replace(s, at=s.at.masked_fill(s.at >= pass_.past, -1)) for s in self.seen)
            self.seen = list(old)
            self.found.put(self.seen)

    def select(self, rows: Tensor) -> _Read:
        twin = copy.copy(self)
        twin.seen = [
            replace(s, at=s.at[rows], weights=s.weights[rows.to(s.weights.device)])
            for s in self.seen
        ]
        return twin

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        acts = plan.acts["question"]
        valid = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        at = torch.where(valid, plan.rows + self.past, -1)
        patches = columns.image.any(0).flatten().nonzero()[:, 0]
        weights = (logits.softmax(-1) * columns.image)[..., patches]
        self.seen.append(_Seen(layer, at, patches + columns.offset, weights))


def _refuse(pass_: Pass, answered: bool) -> None:
    """Check that a block is (a part of) a prompt that ILVAD can read.

    Args:
        pass_: The block.
        answered: True if an answer stands before it.

    Raises:
        NotImplementedError: It isn't.
    """
    if pass_.n_last > 1:
        raise NotImplementedError(
            "ILVAD weighs each token by what the rows before it were grounded in, so candidates of "
            "assisted decoding can't be checked in one pass: leave the assistant out"
        )
    if answered:
        raise NotImplementedError(
            "ILVAD begins each answer with a look at the whole prompt, and this one goes on behind "
            "an answer that is in its cache: begin anew with the whole conversation"
        )


class _Ground(Edit):
    """Looks ahead, then edits; see `ILVAD`."""

    rows = "last"

    def __init__(self, spec: ILVAD, every: Sequence[int], found: Handover[list[_Seen]]) -> None:
        super().__init__(every)
        self.spec, self.found = spec, found
        self.reads = self.layers - frozenset(spec.layers or ())
        self.looks_ahead = spec.tokens - 1
        self.ahead = _Ahead()
        self.looking = self.again = False
        self.log_m: GrowingMask | None = None
        self.rest = GrowingMask(torch.empty(0))
        self.ground, self.known = torch.empty(0), torch.empty(0)
        self.parts: dict[int, Tensor] = {}
        self.row: dict[int, Tensor] = {}
        self.at, self.end = torch.empty(0), 0
        self.factors: GrowingMask | None = None

    def begin(self, pass_: Pass) -> None:
        self.looking, self.factors = pass_.ahead is not None, None
        if pass_.ahead is not None:
            self.ahead.speaking.append(pass_.ahead)
            self.ahead.maps.append({})
            return
        self.again, self.parts = False, {}
        if not pass_.decodes:
            self.log_m, self.row, self.ahead = None, {}, _Ahead()
            return
        if self.log_m is not None:
            self._take_row(pass_.past)
            self.at = torch.full_like(self.at, pass_.past)
            self.end = pass_.past + 1

    def _take_row(self, past: int) -> None:
        """The ground of the row before; what was rolled back is forgotten."""
        late = self.spec.sense == "code"
        size = past + late
        grow = (0, max(0, size - self.ground.shape[1]))
        self.ground = pad(self.ground, grow)[:, :size]
        self.known = pad(self.known, grow)[:, :size]
        if self.row and self.end <= past:
            at = torch.full_like(self.at, past) if late else self.at
            total = torch.stack([one.to(self.ground) for one in self.row.values()]).sum(0)
            self.ground = self.ground.scatter(1, at[:, None], total[:, None])
            self.known = self.known.scatter(1, at[:, None], True)
        self.row = {}

    def select(self, rows: Tensor) -> _Ground:
        twin = copy.copy(self)
        twin.factors = None
        if self.log_m is not None:
            twin.log_m, twin.rest = self.log_m.select(rows), self.rest.select(rows)
            twin.row = {layer: one[rows.to(one.device)] for layer, one in self.row.items()}
            here = rows.to(self.ground.device)
            twin.ground, twin.known, twin.at = self.ground[here], self.known[here], self.at[here]
        return twin

    def active(self, layer: int, pass_: Pass) -> bool:
        return pass_.ahead is not None or (
            self.log_m is not None and (pass_.again or pass_.decodes)
        )

    def look_back(self, scores: Tensor, pass_: Pass) -> Tensor | None:
        read, ahead = self.found.take(), self.ahead
        self.ahead, self.again = _Ahead(), True
        tokens, device = pass_.tokens, pass_.device
        image = tokens.is_kind(Kind.IMAGE)
        log_m = torch.zeros(tokens.batch, tokens.length, dtype=torch.float32, device="cpu")
        for row in range(tokens.batch):
            steps = [n for n, speaking in enumerate(ahead.speaking) if bool(speaking[row])]
            if not steps or not bool(image[row].any()):
                continue
            patches = image[row].nonzero()[:, 0]
            means = torch.stack(
                [
                    torch.stack([ahead.maps[n][layer][row].cpu()[patches] for n in steps]).mean(0)
                    for layer in sorted(self.layers)
                ]
            )
            s = came_into_view(means, self.spec.tau)
            if self.spec.patches == "shuffled":
                s = s[
                    torch.randperm(len(s), generator=torch.Generator().manual_seed(0), device="cpu")
                ]
            log_m[row, patches] = self.spec.alpha * s
        acts = log_m.any(-1)
        if not bool(acts.any()):
            return None
        log_m = log_m.to(device)
        self.log_m = GrowingMask(log_m[:, None, None])
        rest = tokens.is_kind(Kind.PAD, Kind.SYSTEM, Kind.IMAGE, Kind.SEPARATOR)
        self.rest = GrowingMask(rest[:, None, None].to(device))
        self.at, self.end = (pass_.last_rows + pass_.past).to(device), pass_.past + pass_.length
        self._read_prompt(read, log_m)
        return acts

    def _read_prompt(self, read: Sequence[_Seen], log_m: Tensor) -> None:
        """The ground of the question's rows but the last, which is run again."""
        self.ground, self.known = torch.zeros_like(log_m), log_m.new_zeros(log_m.shape).bool()
        for rows in read:
            patches = log_m.to(rows.weights.device)[:, rows.columns][:, None, None]
            _, more = look(rows.weights, patches, torch.ones_like(patches))
            at = rows.at.to(more.device)
            last = at == self.at.to(at.device)[:, None]
            ground = torch.zeros(
                at.shape[0], log_m.shape[1] + 1, device=at.device, dtype=torch.float32
            )
            known = ground.bool()
            index = torch.where(at < 0, log_m.shape[1], at)  # A column for rows that are none.
            ground = ground.scatter(1, index, more.masked_fill(last, 0.0))[:, :-1].to(log_m)
            late = self.spec.sense == "code"
            known = known.scatter(1, index, ~last | late)[:, :-1].to(log_m.device)
            if late:
                before = self.parts.get(rows.layer)
                self.parts[rows.layer] = ground if before is None else before + ground
            else:
                self.ground = self.ground + ground
            self.known = self.known | known

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        weights = logits.softmax(-1)
        if self.looking:
            seen = seen_patches(weights * columns.image)[:, 0]
            self.ahead.maps[-1][layer] = pad(seen, (columns.offset, 0))
            return logits
        if self.log_m is None:
            return logits
        log_m = columns.of(self.log_m).to(logits.device)
        heads, more = look(weights, log_m, columns.image)
        self.row[layer] = more[:, 0]
        if self.again and layer in self.parts:
            self.ground = self.ground + self.parts[layer]
        if layer not in (self.spec.layers or ()):
            return logits
        text = ~columns.of(self.rest).to(logits.device)
        reads = best_half((weights * text).sum(-1))
        log_g = columns.of(self._text_factors()).to(logits.device)
        return logits + heads[..., None] * log_m + reads[..., None] * log_g

    def _text_factors(self) -> GrowingMask:
        """Logarithms of g "B 1 1 K"; in the code's sense anew at each layer."""
        late = self.spec.sense == "code"
        if self.factors is None or late:
            factors, held = text_factors(self.ground, self.known, self.spec.beta)
            self.ground = held if late else self.ground
            self.factors = GrowingMask(factors.clamp(min=_TINY).log()[:, None, None])
        return self.factors
