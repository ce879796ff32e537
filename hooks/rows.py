"""Recomputing the edited rows of one attention call."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from regaze.hooks.attention import (
    gather_rows,
    mix_values,
    row_logits,
    scatter_rows,
    unrounded,
    visible_columns,
)
from regaze.hooks.dispatch import Call
from regaze.hooks.edits import Edit, overrides
from regaze.hooks.passes import Columns, Pass, RowPlan, Wanted
from regaze.hooks.tally import Entry, due

# Long questions are recomputed in parts, so that "B H R K" stays small (64 MB in float32).
MOST_ELEMENTS = 2**24
# Of each call that is measured, the change is taken in a few rows.
MEASURED_ROWS = 8
# Of each call that a method computes itself: sparse attention differs from row to row.
MEASURED_TAKEN = 64

Working = tuple[Entry[Edit, int], Edit]
"""An entry, and the state that its edit has in this pass."""
Asked = MutableMapping[tuple[Entry[Edit, int], int], int]


class Stages(NamedTuple):
    """The edits of some rows, by what they do there; each in the order in which they act.

    Attributes:
        every: All of them.
        wanted: The rows that each asks for.
        logits: Those that read or change logits, without the next two.
        mover: The last one that changes logits, if it can as well move the weights.
        behind: Those that read what the mover leaves.
        weights: Those that change weights.
        outputs: Those that change outputs.
        biasing: Those with a bias for the rows that aren't recomputed, too.
    """

    every: Sequence[Working]
    wanted: tuple[Wanted, ...]
    logits: Sequence[Working]
    mover: Working | None
    behind: Sequence[Working]
    weights: Sequence[Working]
    outputs: Sequence[Working]
    biasing: Sequence[Edit]

    @classmethod
    def of(cls, edits: Sequence[Working]) -> Stages:
        """Sort the edits of some rows."""
        wanted = tuple((e.rows, e.reads_only) for _, e in edits if e.rows is not None)
        biasing = [edit for _, edit in edits if overrides(edit, "column_bias")]
        weights = [one for one in edits if overrides(one[1], "edit_weights")]
        outputs = [one for one in edits if overrides(one[1], "edit_outputs")]
        logits = [
            (entry, edit)
            for entry, edit in edits
            if edit.reads_only
            or overrides(edit, "column_bias")
            or (overrides(edit, "edit_logits") and not overrides(edit, "edit_weights"))
        ]
        mover, behind = None, []
        changing = [n for n, (_, edit) in enumerate(logits) if not edit.reads_only]
        if changing and not weights and overrides(logits[changing[-1]][1], "move_weights"):
            (mover, *behind), logits = logits[changing[-1] :], logits[: changing[-1]]
        return cls(edits, wanted, logits, mover, behind, weights, outputs, biasing)


NO_EDITS = Stages.of([])


@dataclass
class Recomputed:
    """Rows of one attention call, computed anew.

    Attributes:
        out: "B R H D", edited, float32.
        weights: "B H R K", edited, where the stock function returns weights.
        plain: "B R H D", without any edit, where that was asked for.
    """

    out: Tensor
    weights: Tensor | None
    plain: Tensor | None


@dataclass
class RowJob:
    """The work to be done on the rows of one attention call.

    Attributes:
        call: The call.
        edits: Edits with rows; each sees the logits that those before it left.
        plan: The rows.
        layer: Layer index.
        pass_: The block.
        offset: Prompt column of key 0.
        asked: Counts the calls of each edit at each layer; None: nothing is counted.
        plain: True if the rows are wanted without edits too.
        query: "B H R D", the queries of all rows of the plan, where the call hasn't got them.
    """

    call: Call
    edits: Stages
    plan: RowPlan
    layer: int
    pass_: Pass
    offset: int
    asked: Asked | None
    plain: bool = False
    query: Tensor | None = None
    _due: set[Entry[Edit, int]] = field(default_factory=set)

    def run(self) -> Recomputed:
        """Recompute the rows.

        Raises:
            NotImplementedError: The module adds something to its logits that isn't known here.
        """
        call = self.call
        refuse_unknown(call)
        if self.asked is not None:
            self._count(self.asked)
        with unrounded(self.plan.device_type):
            return self._recompute()

    def _recompute(self) -> Recomputed:
        call = self.call
        if self.query is not None or self.pass_.length == 1:
            return self._part(self.plan)
        batch, heads = call.query.shape[:2]
        at_once = max(1, MOST_ELEMENTS // (batch * heads * call.key.shape[2]))
        if self.plan.rows.shape[1] <= at_once:
            return self._part(self.plan)
        parts = [self._part(part) for part in self.plan.parts(at_once)]
        weights = [part.weights for part in parts if part.weights is not None]
        plain = [part.plain for part in parts if part.plain is not None]
        return Recomputed(
            torch.cat([part.out for part in parts], 1),
            torch.cat(weights, 2) if weights else None,
            torch.cat(plain, 1) if plain else None,
        )

    def _count(self, asked: Asked) -> None:
        for entry, edit in self.edits.every:
            if not edit.reads_only and self.layer not in edit.reads:
                entry.tally.count(self.layer)
                number = asked[entry, self.layer] = asked[entry, self.layer] + 1
                if due(number):
                    self._due.add(entry)

    def _part(self, plan: RowPlan) -> Recomputed:
        call, n_keys = self.call, self.call.key.shape[2]
        one = self.pass_.length == 1
        if self.query is not None:
            query = self.query
        else:
            query = call.query if one else gather_rows(call.query, plan.rows)
        logits = row_logits(query, call.key, call.scaling, call.kwargs.get("softcap"))
        visible: Tensor | None = None
        # A lone row without mask sees everything.
        if not one or call.mask is not None:
            visible, bias = visible_columns(
                call.mask,
                plan.rows,
                n_keys,
                query_offset=self.pass_.past - self.offset,
                causal=call.causal,
                window=call.kwargs.get("sliding_window"),
            )
            if bias is not None:
                logits = logits + bias
            if visible is not None:
                # A row of padding may see nothing: its weights, which nobody uses, and their
                # gradients must be numbers all the same.
                visible = visible | ~visible.any(-1, keepdim=True)
                logits = logits.masked_fill_(~visible, -torch.inf)
        plain = None
        if self.plain:
            with torch.no_grad():
                plain = mix_values(logits.softmax(-1), call.value)
        columns = self.pass_.columns(self.offset, n_keys, logits.device)
        if visible is not None:
            columns = replace(columns, seen=visible)
        for entry, edit in self.edits.logits:
            if edit.reads_only:
                self._see(edit, logits, plan, columns)
            else:
                logits = self._edit(entry, edit, logits, visible, plan, columns)
        weights = logits.softmax(-1)
        if self.edits.mover is not None:
            entry, edit = self.edits.mover
            if self.edits.behind:  # Whoever looks changes nothing, not even how it is computed.
                with torch.no_grad():
                    left = self._edited(edit, logits, visible, plan, columns)
                for _, reader in self.edits.behind:
                    self._see(reader, left, plan, columns)
            moved = edit.move_weights(self.layer, weights, columns)
            weights = self._changed(entry, edit, weights, moved, plan)
        for entry, edit in self.edits.weights:
            moved = edit.edit_weights(self.layer, weights, logits, columns)
            weights = self._changed(entry, edit, weights, moved, plan)
        out = mix_values(weights, call.value)
        for entry, edit in self.edits.outputs:
            out = self._edit_outputs(entry, edit, out, plan, columns)
        return Recomputed(out, weights if call.maps else None, plain)

    def _see(self, edit: Edit, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        with torch.no_grad():
            edit.see_rows(self.layer, logits, plan, columns)

    def _edit(
        self,
        entry: Entry[Edit, int],
        edit: Edit,
        logits: Tensor,
        visible: Tensor | None,
        plan: RowPlan,
        columns: Columns,
    ) -> Tensor:
        new = self._edited(edit, logits, visible, plan, columns)
        if entry in self._due:
            acts = plan.acts[edit.rows] if edit.rows else None
            counted = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
            measure(entry, self.layer, logits, new, counted, logits=True)
        return new

    def _edited(
        self,
        edit: Edit,
        logits: Tensor,
        visible: Tensor | None,
        plan: RowPlan,
        columns: Columns,
    ) -> Tensor:
        """The logits with an edit's in its rows."""
        rows = plan.acts[edit.rows] if edit.rows else None
        if overrides(edit, "column_bias"):
            bias = edit.column_bias(self.layer, columns)
            new = logits if bias is None else bias.add(logits)
            rows = None  # All rows get it, by the kernel or here.
        else:
            new = edit.edit_logits(self.layer, logits, columns)
        # Arithmetic on masked logits may give NaN; what was masked stays masked.
        seen = None if edit.keeps_masked else visible
        where = rows if seen is None else seen if rows is None else seen & rows
        return new if where is None else torch.where(where, new, logits)

    def _changed(
        self, entry: Entry[Edit, int], edit: Edit, weights: Tensor, new: Tensor, plan: RowPlan
    ) -> Tensor:
        """The weights with an edit's in its rows."""
        acts = plan.acts[edit.rows] if edit.rows else None
        new = new if acts is None else torch.where(acts, new, weights)
        if entry in self._due:
            counted = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
            measure(entry, self.layer, weights, new, counted, logits=False)
        return new

    def _edit_outputs(
        self,
        entry: Entry[Edit, int],
        edit: Edit,
        out: Tensor,
        plan: RowPlan,
        columns: Columns,
    ) -> Tensor:
        acts = plan.acts[edit.rows] if edit.rows else None
        rows = None if acts is None else acts[:, 0, :, :, None]  # "B R 1 1"
        new = edit.edit_outputs(self.layer, out, columns)
        new = new if rows is None else torch.where(rows, new, out)
        if entry in self._due:
            size = out.norm(dim=-1).clamp(min=1e-12)
            counted = plan.valid if rows is None else plan.valid & rows[..., 0, 0]
            entry.tally.add(self.layer, (new - out).norm(dim=-1) / size, counted[..., None])
        return new


def refuse_unknown(call: Call) -> None:
    """Check that nothing is added to a call's logits that isn't known here.

    Raises:
        NotImplementedError: Something is; the message names it.
    """
    for name in ("s_aux", "position_bias"):
        if call.kwargs.get(name) is not None:
            raise NotImplementedError(
                f"{type(call.module).__name__} uses {name}, which regaze's edits don't know yet"
            )
    if call.kwargs.get("dropout"):
        raise NotImplementedError(
            f"{type(call.module).__name__} drops attention weights at random (dropout="
            f"{call.kwargs['dropout']}), which an edited row can't repeat; call model.eval(), or "
            "set the config's attention_dropout to 0"
        )


@torch.no_grad()
def measure(
    entry: Entry[Edit, int],
    layer: int,
    before: Tensor,
    after: Tensor,
    valid: Tensor,
    *,
    logits: bool,
) -> None:
    """Measure how far each row's weights moved (total variation).

    Args:
        entry: Entry whose tally counts.
        layer: Layer index.
        before: "B H R K" logits or weights.
        after: The edited logits or weights, of the same shape.
        valid: "B R", rows that count.
        logits: True if both are logits, False if they are weights.
    """
    count = valid.shape[1]
    step = -(-count // MEASURED_ROWS)
    rows = slice((count - 1) % step, None, step)  # The last one always among them.
    old, new = before[:, :, rows], after[:, :, rows]
    if logits:
        old, new = old.softmax(-1), new.softmax(-1)
    entry.tally.add(layer, 0.5 * (new - old).abs_().sum(-1), valid[:, None, rows])


def overwrite(
    stock: tuple[Tensor, Tensor | None], edited: Recomputed, plan: RowPlan
) -> tuple[Tensor, Tensor | None]:
    """Write recomputed rows over the stock result.

    Args:
        stock: "B Q H D" and maybe "B H Q K".
        edited: The rows.
        plan: Plan of the rows.
    """
    out, weights = stock
    out = scatter_rows(out, plan.rows, plan.written, edited.out)
    if weights is not None and edited.weights is not None:
        new = edited.weights.transpose(1, 2)
        kept = scatter_rows(weights.transpose(1, 2), plan.rows, plan.written, new)
        weights = kept.transpose(1, 2)
    return out, weights
