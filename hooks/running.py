"""One forward pass under way: what belongs to it alone, and its attention calls."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regaze.hooks.attention import gather_rows
from regaze.hooks.biases import add_biases
from regaze.hooks.check import check_rows
from regaze.hooks.dispatch import Attention, Call, Stock
from regaze.hooks.edits import Edit, overrides
from regaze.hooks.null_prompt import NullPrompt
from regaze.hooks.passes import Pass, RowPlan
from regaze.hooks.prompts import Prompt, Works
from regaze.hooks.recurrent import Apart
from regaze.hooks.rows import (
    MEASURED_TAKEN,
    NO_EDITS,
    RowJob,
    Stages,
    Working,
    overwrite,
    refuse_unknown,
)
from regaze.hooks.tally import Entry, due


class _Acting(NamedTuple):
    """The edits of one layer in a pass, by what they do; layers with the same edits share it.

    Attributes:
        taker: The one that computes the attention itself, if any does in this pass.
        rows: Those with rows.
        scaling: Those that scale heads.
        looks: True if a row is recomputed for the row check even where no edit has rows: the layer
            is scaled, or edited when the last row runs again.
    """

    taker: Working | None
    rows: Stages
    scaling: Sequence[Working]
    looks: bool

    @classmethod
    def of(cls, entries: Sequence[Entry[Edit, int]], works: Works, pass_: Pass) -> _Acting:
        """Sort the edits of a layer."""
        here = [(entry, works[entry]) for entry in entries]
        takers = (one for one in here if overrides(one[1], "take_over") and one[1].takes(pass_))
        scaling = [one for one in here if overrides(one[1], "scale_heads")]
        looks = bool(scaling) or any(edit.looks_back for _, edit in here)
        rows = Stages.of([one for one in here if one[1].rows])
        return cls(next(takers, None), rows, scaling, looks)


@dataclass(eq=False)
class Running:
    """A forward pass of the text tower, while it runs.

    With gradient checkpointing the layers run once more in the backward pass, maybe on another
    thread; they then find the pass in their arguments, and nothing is counted or checked again.

    Attributes:
        pass_: Pass as methods see it.
        prompt: State of the prompt after the pass.
        works: The state of each edit in it.
        cache: The caller's cache, if there is one.
        by_layer: The entries that act at each layer, in order.
        null: The prompt without images that runs along, if any.
        offsets: Per layer, the prompt column of key 0 where it isn't 0.
        n_keys: Per layer, how many keys the cache gives it, where not one for each column so far.
        checked: Layers whose rows were compared with the kernel's since something was attached;
            shared by all passes.
        positions: Position ids that the tower was given, "... B Q".
        over: The pass has returned.
        keeps: True if its attention calls are kept.
        kept: Per layer, the attention call of a prompt whose last row may be run again.
        apart: Layers under way that run twice, on the prompt and on the one without images.
    """

    pass_: Pass
    prompt: Prompt
    works: Works
    cache: Any
    by_layer: Mapping[int, tuple[Entry[Edit, int], ...]]
    null: NullPrompt | None
    offsets: Mapping[int, int]
    n_keys: Mapping[int, int]
    checked: set[tuple[int, bool]]
    positions: Tensor | None = None
    over: bool = False
    keeps: bool = False
    kept: dict[int, Call] = field(default_factory=dict)
    apart: dict[nn.Module, Apart] = field(default_factory=dict)
    _acting: dict[tuple[Entry[Edit, int], ...], _Acting] = field(default_factory=dict)
    _calls: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _checks: set[int] = field(default_factory=set)
    _factors: dict[tuple[int, Entry[Edit, int]], Tensor | None] = field(default_factory=dict)

    def attend(self, layer: int, stock: Stock, call: Call) -> Attention:
        """The stock attention with this layer's edits written over it.

        Raises:
            RuntimeError: The layer runs otherwise than is known here, so its edit wouldn't be
                exact.
        """
        null = self.null
        if self.keeps:
            whole = call if null is None else null.real(call)
            self.kept[layer] = replace(whole, query=whole.query[:, :, :0])
        run = call.run if null is None else functools.partial(null.run, call)
        entries = self.by_layer.get(layer)
        if entries is None:
            return run(stock)
        acting = self._acting.get(entries)
        if acting is None:
            acting = self._acting[entries] = _Acting.of(entries, self.works, self.pass_)
        if not self.over:
            self._count(layer, call)
            self._count_keys(layer, call)
        if acting.taker is not None:
            return self._taken_over(layer, stock, call, acting.taker, len(entries) > 1)
        real = call if null is None else null.real(call)
        rows = acting.rows
        active = [one for one in rows.every if one[1].active(layer, self.pass_)]
        if len(active) < len(rows.every):
            rows = Stages.of(active)
        out, weights = self._rows(layer, stock, run, real, rows, acting.looks)
        for entry, edit in acting.scaling:
            factor = self._factor(layer, entry, edit, out)
            if factor is not None:
                # The prompt without image gets the same factors.
                out = out * factor[:, None, :, None].to(out.dtype)
        return out, weights

    def _taken_over(
        self, layer: int, stock: Stock, call: Call, taker: Working, crowded: bool
    ) -> Attention:
        """A pass in which a method computes a layer's attention itself."""
        if crowded:
            raise NotImplementedError(
                f"layer {layer} is edited by an intervention that computes its attention itself "
                "(TidalDecode, AnchorAttention) and by others: give them different layers"
            )
        if self.null is not None:
            raise NotImplementedError(
                "an intervention that compares the prompt with itself without images (VHR) can't "
                f"share a pass with one that computes layer {layer}'s attention itself "
                "(AnchorAttention)"
            )
        refuse_unknown(call)
        entry, edit = taker
        if self._checks_now(layer) and not self.over:
            looks = self.pass_.plan([("latest", False)], call.query.device)
            if looks is not None:
                full = call.run(stock)[0]
                plain = self._plain(layer, call, looks)
                self._check(call, layer, full, plain, looks.rows, looks.valid)
        done = edit.take_over(layer, call, stock)
        if done is None:
            return call.run(stock)
        if not self.over:
            entry.tally.count(layer)
            self.prompt.asked[entry, layer] += 1
            if due(self.prompt.asked[entry, layer]):
                some = self.pass_.some_rows(MEASURED_TAKEN, call.query.device)
                dense = self._plain(layer, call, some)
                with torch.no_grad():
                    there = gather_rows(done[0].transpose(1, 2), some.rows).transpose(1, 2)
                    moved = (there.float() - dense).norm(dim=-1)
                    moved = moved / dense.norm(dim=-1).clamp(min=1e-12)
                    entry.tally.add(layer, moved, some.valid[:, :, None])
        return done

    def _plain(self, layer: int, call: Call, plan: RowPlan) -> Tensor:
        """Compute some rows as they would be without any edit, "B R H D" float32."""
        with torch.no_grad():
            offset = self.offsets.get(layer, 0)
            job = RowJob(call, NO_EDITS, plan, layer, self.pass_, offset, None, plain=True)
            plain = job.run().plain
        if plain is None:
            raise RuntimeError("rows without edits were asked for and weren't made")
        return plain

    def _rows(
        self,
        layer: int,
        stock: Stock,
        run: Callable[[Stock], Attention],
        real: Call,
        edits: Stages,
        looked_at: bool,
    ) -> Attention:
        device = real.query.device
        plan = self.pass_.plan(edits.wanted, device) if edits.wanted else None
        looks = plan or (self.pass_.plan([("last", False)], device) if looked_at else None)
        biasing = edits.biasing
        if looks is None and not biasing:
            return run(stock)
        checks = self._checks_now(layer)
        asked = None if self.over or self.pass_.ahead is not None else self.prompt.asked
        offset = self.offsets.get(layer, 0)
        if plan is None:
            refuse_unknown(real)
            done = run(stock)
            if looks is None:  # A part of a prompt that goes on.
                return self._bias(done, layer, real, biasing)
            if checks and not self.over:
                with torch.no_grad():
                    job = RowJob(real, NO_EDITS, looks, layer, self.pass_, offset, None, plain=True)
                    plain = job.run().plain
                self._check(real, layer, done[0], plain, looks.rows, looks.valid)
            return done
        job = RowJob(real, edits, plan, layer, self.pass_, offset, asked, plain=checks)
        edited = job.run()
        if plan.covers_all and self.null is None and not checks:
            return edited.out.to(real.query.dtype), edited.weights
        done = run(stock)
        if checks and not self.over:
            self._check(real, layer, done[0], edited.plain, plan.rows, plan.valid)
        if biasing:
            done = self._bias(done, layer, real, biasing)
        return overwrite(done, edited, plan)

    def _bias(self, done: Attention, layer: int, real: Call, biasing: Sequence[Edit]) -> Attention:
        """The kernel's rows, with the biases that all of them get."""
        offset = self.offsets.get(layer, 0)
        columns = self.pass_.columns(offset, real.key.shape[2], real.query.device)
        given = [edit.column_bias(layer, columns) for edit in biasing]
        biases = [bias for bias in given if bias is not None]
        if not biases:
            return done
        if self.null is None:
            return add_biases(done, real, biases, self.pass_.past - offset)
        # The prompt without images, packed behind, isn't pointed into.
        for bias in biases:
            at = torch.arange(bias.columns.shape[1], device=bias.columns.device)
            shared = at < self.null.first.to(at.device)[:, None]
            if bool((shared & (bias.columns != bias.columns[:, :1])).any()):
                raise NotImplementedError(
                    "an intervention that compares the prompt with itself without images (VHR) "
                    "can't share a pass with one that points at text before the image (PASTA): "
                    "both prompts have that beginning in common"
                )
        out, weights = done
        length = self.pass_.length
        new, weights = add_biases(
            (out[:, :length], weights), real, biases, self.pass_.past - offset
        )
        return torch.cat([new, out[:, length:]], 1), weights

    def _factor(
        self, layer: int, entry: Entry[Edit, int], edit: Edit, out: Tensor
    ) -> Tensor | None:
        key = layer, entry
        if key in self._factors:
            return self._factors[key]
        with torch.no_grad():
            blind = None if self.null is None else self.null.last_row(out)
            factor = edit.scale_heads(layer, out[:, : self.pass_.length], blind, self.pass_)
            if factor is not None and self.pass_.ahead is None:
                entry.tally.count(layer)
                self.prompt.asked[entry, layer] += 1
                if due(self.prompt.asked[entry, layer]):
                    entry.tally.add(layer, (factor.float() - 1).abs())
        self._factors[key] = factor
        return factor

    def factor(self, layer: int, entry: Entry[Edit, int]) -> Tensor | None:
        """Return the factors "B H" by which an edit scaled a layer's heads."""
        return self._factors.get((layer, entry))

    # -- proof ----------------------------------------------------------------------------------

    def _checks_now(self, layer: int) -> bool:
        """Return whether this pass compares the layer's rows; a second run does as the first."""
        if not self.over and (layer, self.pass_.decodes) not in self.checked:
            self._checks.add(layer)
        return layer in self._checks

    def _check(
        self, call: Call, layer: int, out: Tensor, plain: Tensor | None, rows: Tensor, valid: Tensor
    ) -> None:
        if plain is not None:
            check_rows(call, layer, out, plain, rows, valid)
            self.checked.add((layer, self.pass_.decodes))

    def _count(self, layer: int, call: Call) -> None:
        """Count an attention call, and see that it is the layer's only one and has all its rows."""
        calls = self._calls[layer] = self._calls[layer] + 1
        size = self.pass_.length + (0 if self.null is None else self.null.size)
        batch, _, rows, _ = call.query.shape
        if calls == 1 and (batch, rows) == (self.pass_.batch, size):
            return
        module = type(call.module).__name__
        if calls > 1:
            raise RuntimeError(
                f"layer {layer} ({module}) calls its attention function more than once in one "
                "forward pass (per chunk or sample), so regaze can't tell which rows it is given; "
                "it can't be edited exactly"
            )
        raise RuntimeError(
            f"layer {layer} ({module}) gives its attention function {batch} x {rows} query "
            f"rows where {self.pass_.batch} x {size} entered the text tower; it can't be "
            "edited exactly"
        )

    def _count_keys(self, layer: int, call: Call) -> None:
        """See that there is a key for each column that is known of; all that edits do hangs on it.

        `check_rows` can't see that: it recomputes rows over whatever keys the call has.
        """
        known = self.n_keys.get(layer, self.pass_.past + self.pass_.length)
        given = call.key.shape[2] - (0 if self.null is None else self.null.size)
        if given != known:
            raise RuntimeError(
                f"layer {layer} ({type(call.module).__name__}) attends over {given} columns where "
                f"the prompt and its cache have {known}, so regaze can't tell what they hold: the "
                "model keeps them in another way than in the cache that it is given (cache, or "
                "past_key_values); it can't be edited exactly"
            )

    def show(self, layer: int, hidden: Tensor) -> None:
        """Show a layer's input "B Q E" to the edits that want to see it."""
        for entry in self.by_layer.get(layer, ()):
            edit = self.works[entry]
            if overrides(edit, "see_hidden") and (edit.sees_decoding or not self.pass_.decodes):
                with torch.no_grad():
                    edit.see_hidden(layer, hidden[:, : self.pass_.length], self.pass_)

    def finish(self, tower: Any) -> None:
        """End the pass: see that every layer was edited that should have been.

        Raises:
            RuntimeError: A layer never called its attention function.
        """
        self.over = True
        missing = [i for i in self.by_layer if not self._calls[i]]
        if missing:
            # A draft that the first layers make runs no others, which are there all the same.
            n_layers = getattr(tower.config, "num_hidden_layers", len(tower.layers))
            missing = [i for i in missing if i < n_layers or i >= len(tower.layers)]
        if missing and bool(self.pass_.tokens.has_image.any()):
            raise RuntimeError(
                f"layers {missing} never called transformers' attention interface in this forward "
                "pass, so their edits were skipped: their attention takes a path that regaze "
                "can't edit (leave them out), or they were taken out or replaced since (then "
                "attach anew)"
            )
