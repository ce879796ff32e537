"""Recomputing the edited rows of one attention call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.attention import (
    gather_rows,
    mix_values,
    row_logits,
    scatter_rows,
    visible_columns,
)
from regaze.hooks.edits import Edit
from regaze.hooks.passes import Pass, RowPlan
from regaze.hooks.report import Tally

# Long questions are recomputed in parts, so that "B H R K" stays small (64 MB in float32).
MOST_ELEMENTS = 2**24


@dataclass(eq=False)
class Entry:
    """One edit on a seat's stack."""

    edit: Edit
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Call:
    """The arguments of one attention call.

    Attributes:
        module: The attention module.
        query: "B H Q D".
        key: "B G K D".
        value: "B G K D".
        mask: In whatever form the stock function takes it.
        kwargs: The rest, handed on untouched.
        maps: Whether the stock function returns its attention weights (eager does).
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    kwargs: dict[str, Any]
    maps: bool

    def run(self, stock: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
        """Call the stock function."""
        out, weights = stock(
            self.module, self.query, self.key, self.value, self.mask, **self.kwargs
        )
        return out, weights


def recompute(
    call: Call, entries: Sequence[Entry], plan: RowPlan, layer: int, pass_: Pass, offset: int
) -> tuple[Tensor, Tensor | None]:
    """Attention outputs of the plan's rows with the entries' edits, in float32.

    Args:
        call: The attention call.
        entries: Edits with rows, in order; each sees the logits that those before it left.
        plan: The rows.
        layer: Layer index.
        pass_: The block.
        offset: Prompt column of key 0.

    Returns:
        "B R H D", and the weights "B H R K" if the stock function returns weights.

    Raises:
        NotImplementedError: The module adds something to its logits that isn't known here.
    """
    for name in ("s_aux", "position_bias"):
        if call.kwargs.get(name) is not None:
            raise NotImplementedError(
                f"{type(call.module).__name__} uses {name}, which regaze's row edits don't know yet"
            )
    batch, heads = call.query.shape[:2]
    at_once = max(1, MOST_ELEMENTS // (batch * heads * call.key.shape[2]))
    parts = [
        _recompute(call, entries, part, layer, pass_, offset, goes_on=number > 0)
        for number, part in enumerate(plan.parts(at_once))
    ]
    if len(parts) == 1:
        return parts[0][0], parts[0][1] if call.maps else None
    out = torch.cat([out for out, _ in parts], 1)
    return out, torch.cat([w for _, w in parts], 2) if call.maps else None


def _recompute(
    call: Call,
    entries: Sequence[Entry],
    plan: RowPlan,
    layer: int,
    pass_: Pass,
    offset: int,
    goes_on: bool,
) -> tuple[Tensor, Tensor]:
    kwargs, n_keys = call.kwargs, call.key.shape[2]
    query = call.query if pass_.length == 1 else gather_rows(call.query, plan.rows)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = row_logits(query, call.key, scaling, kwargs.get("softcap"))
    visible: Tensor | None = None
    # A lone row without mask sees everything.
    if pass_.length > 1 or call.mask is not None:
        causal = kwargs.get("is_causal")
        visible, bias = visible_columns(
            call.mask,
            plan.rows,
            n_keys,
            query_offset=pass_.past - offset,
            causal=getattr(call.module, "is_causal", True) if causal is None else causal,
            window=kwargs.get("sliding_window"),
        )
        if bias is not None:
            logits = logits + bias
        if visible is not None:
            logits = logits.masked_fill(~visible, -torch.inf)
    columns = pass_.columns(offset, n_keys, logits.device)
    for entry in entries:
        if entry.edit.reads_only:
            entry.edit.see_rows(layer, logits, plan, columns)
            continue
        acts = plan.acts[entry.edit.rows] if entry.edit.rows else None
        new = entry.edit.edit_logits(layer, logits, columns)
        # Arithmetic on masked logits may give NaN; what was masked stays masked.
        where = acts if visible is None else visible if acts is None else visible & acts
        if where is not None:
            new = torch.where(where, new, logits)
        counted = plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]
        entry.tally.add_rows(layer, logits, new, counted, goes_on)
        logits = new
    weights = logits.softmax(-1)
    return mix_values(weights, call.value), weights


def overwrite(
    stock: tuple[Tensor, Tensor | None], edited: tuple[Tensor, Tensor | None], plan: RowPlan
) -> tuple[Tensor, Tensor | None]:
    """Write recomputed rows over the stock result.

    Args:
        stock: "B Q H D" and maybe "B H Q K".
        edited: "B R H D" and maybe "B H R K".
        plan: The rows.
    """
    out, weights = stock
    out = scatter_rows(out, plan.rows, plan.written, edited[0])
    if weights is not None and edited[1] is not None:
        new = edited[1].transpose(1, 2)
        kept = scatter_rows(weights.transpose(1, 2), plan.rows, plan.written, new)
        weights = kept.transpose(1, 2)
    return out, weights
