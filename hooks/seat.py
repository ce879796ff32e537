"""The seat: where edits sit inside a transformers model.

One attention function and one mask function are registered under the same name, and that name is
set on the text tower's config only. The function calls the attention the model had before (sdpa,
flash, flex, eager) and then writes recomputed rows over its output. Without the mask function
under the same name transformers would hand out no padding mask at all, silently.

Registration is global to the process, so the registered functions hold no state: they look up the
seat of the module that calls them and find none for every other model.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks import null_rows
from regaze.hooks.attention import (
    gather_rows,
    mix_values,
    row_logits,
    scatter_rows,
    visible_columns,
)
from regaze.hooks.edits import Edit, RowPlan, Rows, Step
from regaze.hooks.reading import Reader
from regaze.hooks.report import Tally

PREFIX = "regaze_"
_SEATS: MutableMapping[nn.Module, tuple[Seat, int]] = weakref.WeakKeyDictionary()
_Attention = tuple[Tensor, Tensor | None]


@dataclass(eq=False)
class Entry:
    """One edit on the stack, with its tally."""

    edit: Edit
    tally: Tally = field(default_factory=Tally)
    prompts: int = 0
    handles: list[Any] = field(default_factory=list)


class Seat:
    """The ordered stack of edits of one text tower, and what they need to run."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.tower = weakref.ref(reader.tower)
        self.entries: list[Entry] = []
        self.step: Step | None = None
        self.null_batch = 0
        self._offsets: dict[int, int] = {}
        self._handles: list[Any] = []
        self._configs: list[tuple[Any, str]] = []

    # -- installing ---------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Put an edit on top of the stack; the first one installs the seat."""
        if not self.entries:
            self._install()
        if entry.edit.watches_hidden:
            self._watch(entry)
        self.entries.append(entry)

    def pop(self, entry: Entry) -> None:
        """Take an edit off, from anywhere in the stack; the last one uninstalls the seat."""
        self.entries.remove(entry)
        for handle in entry.handles:
            handle.remove()
        if not self.entries:
            self._uninstall()

    def _install(self) -> None:
        tower = self.reader.tower
        attentions = [layer.self_attn for layer in tower.layers if hasattr(layer, "self_attn")]
        configs = {id(m.config): m.config for m in [tower, *attentions]}
        for config in configs.values():
            base = config._attn_implementation
            self._configs.append((config, base))
            # The property's setter would pass the name on to sub-configs.
            config._attn_implementation_internal = _register(base)
        for module in attentions:
            _SEATS[module] = (self, module.layer_idx)
        self._handles += self.reader.install()
        self._handles += [
            tower.register_forward_pre_hook(self._begin, with_kwargs=True),
            tower.register_forward_hook(self._end, always_call=True),
        ]

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for config, base in self._configs:
            config._attn_implementation_internal = base
        self._configs.clear()
        if (tower := self.tower()) is not None:
            for layer in tower.layers:
                _SEATS.pop(getattr(layer, "self_attn", None), None)  # type: ignore[call-overload]
        self.step = None
        self.reader.forget()

    def _watch(self, entry: Entry) -> None:
        for index, layer in enumerate(self.reader.tower.layers):
            if index in entry.edit.layers:
                watch = self._watcher(entry, index)
                entry.handles.append(layer.register_forward_pre_hook(watch, with_kwargs=True))

    def _watcher(self, entry: Entry, index: int) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A deep copy of the model carries this hook along; it must not feed this seat.
            if self.step is not None and module is self.reader.tower.layers[index]:
                hidden = args[0] if args else kwargs["hidden_states"]
                entry.edit.see_hidden(index, hidden[: self.step.batch], self.step)

        return see

    # -- around one forward pass of the tower -------------------------------------------------

    @torch.compiler.disable
    def _begin(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if tower is not self.tower():
            return None
        for config, _ in self._configs:
            if not str(config._attn_implementation).startswith(PREFIX):
                raise RuntimeError(
                    "the model's attention implementation was changed to "
                    f"{config._attn_implementation!r} while interventions were attached, which "
                    "would silently switch them off; detach first, then change it"
                )
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        self.step = step = self.reader.read(kwargs)
        cache = kwargs.get("past_key_values")
        self._offsets = {}
        if cache is not None and any(getattr(cache, "is_sliding", ())):
            layers = {index for entry in self.entries for index in entry.edit.layers}
            self._offsets = {i: cache.get_mask_sizes(step.length, i)[1] for i in layers}
        for entry in self.entries:
            entry.edit.begin(step)
            entry.prompts += step.batch if step.prompt_start else 0
        wants = [e.edit for e in self.entries if e.edit.null_rows and e.edit.layers]
        self.null_batch = 0
        if wants and step.index == 0 and self.reader.has_images:
            if not step.prompt_end:
                raise NotImplementedError(
                    "this intervention compares the prompt with and without its image and needs "
                    "the whole prompt in one block; don't prefill it in parts"
                )
            self.null_batch = step.batch
            kwargs = null_rows.add_null_rows(
                kwargs, step, wants[0].null_positions, self.reader.tower.config
            )
        return (), kwargs

    @torch.compiler.disable
    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        if tower is not self.tower():
            return None
        batch, self.null_batch, self.step = self.null_batch, 0, None
        return null_rows.drop_null_rows(output, batch) if batch and output is not None else None

    # -- inside one attention call ------------------------------------------------------------

    def attend(
        self,
        layer: int,
        base: Callable[..., _Attention],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        **kwargs: Any,
    ) -> _Attention:
        """The stock attention with this layer's edits written over it."""
        step = self.step
        here = [e for e in self.entries if layer in e.edit.layers] if step else []
        if step is None or not here:
            return base(module, query, key, value, mask, **kwargs)
        by_row = [e for e in here if e.edit.rows and e.edit.active(layer, step)]
        plan = step.plan([e.edit.rows for e in by_row if e.edit.rows]) if by_row else None
        weights: Tensor | None = None
        if plan is not None and plan.covers_all and not self.null_batch and _keeps_no_map(kwargs):
            rows, _ = self._edit_rows(layer, by_row, plan, module, query, key, value, mask, kwargs)
            out = rows.to(query.dtype)
        else:
            out, weights = base(module, query, key, value, mask, **kwargs)
            if plan is not None:
                real = slice(0, step.batch)
                rows, new = self._edit_rows(
                    layer, by_row, plan, module, query[real], key[real], value[real],
                    _rows_of(mask, real), kwargs,
                )  # fmt: skip
                edited = scatter_rows(out[real], plan.rows, plan.valid, rows)
                out = torch.cat([edited, out[step.batch :]]) if self.null_batch else edited
                if isinstance(weights, Tensor) and weights.ndim == 4:
                    kept = scatter_rows(
                        weights[real].transpose(1, 2), plan.rows, plan.valid, new.transpose(1, 2)
                    ).transpose(1, 2)
                    weights = torch.cat([kept, weights[step.batch :]])
        for entry in here:
            if entry.edit.scales_heads:
                factor = entry.edit.scale_heads(layer, out, step)
                if factor is not None:
                    out = out * _twice(factor, out)[:, None, :, None].to(out.dtype)
                    entry.tally.add_factor(layer, factor, step)
        return out, weights

    def _edit_rows(
        self,
        layer: int,
        entries: list[Entry],
        plan: RowPlan,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Recompute the plan's rows with the edits; outputs "B R H D" and weights "B H R K"."""
        step = self.step
        for name in ("s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise NotImplementedError(
                    f"{type(module).__name__} uses {name}, which regaze's row edits don't know yet"
                )
        if step is None:
            raise RuntimeError("attention ran outside the text tower's forward pass")
        n_keys = key.shape[2]
        offset = self._offsets.get(layer, 0)
        causal = kwargs.get("is_causal")
        chosen = query if step.length == 1 else gather_rows(query, plan.rows)
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits = row_logits(chosen, key, scaling, kwargs.get("softcap"))
        visible: Tensor | None = None
        if step.length > 1 or mask is not None:
            visible, bias = visible_columns(
                mask,
                plan.rows,
                n_keys,
                query_offset=step.past - offset,
                causal=getattr(module, "is_causal", True) if causal is None else causal,
                window=kwargs.get("sliding_window"),
            )
            if bias is not None:
                logits = logits + bias
            if visible is not None:
                logits = logits.masked_fill(~visible, -torch.inf)
        columns = step.columns(offset, n_keys)
        for entry in entries:
            acts = plan.acts[_selector(entry)]
            new = entry.edit.edit_logits(layer, logits, columns)
            if new is logits:
                continue
            # Arithmetic on masked logits may give NaN; what was masked stays masked.
            where = acts if visible is None else visible if acts is None else visible & acts
            if where is not None:
                new = torch.where(where, new, logits)
            entry.tally.add_rows(layer, logits, new, _counted(plan, acts), step)
            logits = new
        weights = logits.softmax(-1)
        return mix_values(weights, value), weights


def _selector(entry: Entry) -> Rows:
    if entry.edit.rows is None:
        raise RuntimeError("an edit without rows was asked for row logits")
    return entry.edit.rows


def _counted(plan: RowPlan, acts: Tensor | None) -> Tensor:
    return plan.valid if acts is None else plan.valid & acts[:, 0, :, 0]


def _keeps_no_map(kwargs: dict[str, Any]) -> bool:
    return not kwargs.get("output_attentions")


def _rows_of(mask: Any, rows: slice) -> Any:
    if isinstance(mask, Tensor) and mask.shape[0] > 1:
        return mask[rows]
    return mask


def _twice(factor: Tensor, out: Tensor) -> Tensor:
    """The rows without image get the same factors."""
    return factor if factor.shape[0] == out.shape[0] else torch.cat([factor, factor])


def _register(base: str | None) -> str:
    """Register the pair of functions for one stock implementation; return their name."""
    base = base or "eager"
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:

        @torch.compiler.disable
        def attention(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any,
            *args: Any,
            **kwargs: Any,
        ) -> _Attention:
            stock = _stock_attention(module, base)
            found = _SEATS.get(module)
            if found is None or args:
                return stock(module, query, key, value, attention_mask, *args, **kwargs)
            seat, layer = found
            return seat.attend(layer, stock, module, query, key, value, attention_mask, **kwargs)

        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _stock_attention(module: nn.Module, base: str) -> Callable[..., _Attention]:
    """What the module would have called: its own file may override a name, and owns eager."""
    for cls in type(module).__mro__:
        home = sys.modules.get(cls.__module__)
        functions = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)
        if functions is not None:
            eager = getattr(home, "eager_attention_forward", None)
            found: Callable[..., _Attention] | None = functions.get(base, eager)
            if found is not None:
                return found
    raise RuntimeError(f"{type(module).__name__}: no attention function named {base!r}")
