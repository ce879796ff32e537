"""The seat: where edits sit inside a transformers model.

One attention function and one mask function are registered under the same name, and that name is
set on the text tower's config only. The function calls the attention the model had before (sdpa,
flash, flex, eager) and then writes recomputed rows over its output. Without the mask function
under the same name transformers would hand out no padding mask at all, silently.

Registration is global to the process, so the registered functions hold no state: they look up the
seat of the module that calls them and find none for every other model.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks import null_rows
from regaze.hooks.edits import Step
from regaze.hooks.reading import Reader
from regaze.hooks.rows import Call, Entry, overwrite, recompute

PREFIX = "regaze_"
_SEATS: MutableMapping[nn.Module, tuple[Seat, int]] = weakref.WeakKeyDictionary()
_INSTALLED: weakref.WeakSet[Seat] = weakref.WeakSet()
_Attention = tuple[Tensor, Tensor | None]


class Seat:
    """The ordered stack of edits of one text tower, and what they need to run."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.tower = weakref.ref(reader.tower)
        self.entries: list[Entry] = []
        self._sort()
        self.step: Step | None = None
        self.null_batch = 0
        self.paused = False
        self._compared = False
        self._offsets: dict[int, int] = {}
        self._handles: list[Any] = []
        self._configs: list[tuple[Any, str]] = []

    # -- installing ---------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Put an edit on top of the stack; the first one installs the seat.

        Raises:
            ValueError: It contradicts one that is already there.
        """
        null = {e.edit.null_positions for e in [*self.entries, entry] if e.edit.null_rows}
        if len(null) > 1:
            raise ValueError(
                'interventions that remove the image as "drop" and as "mask" can\'t share a pass; '
                "give both the same null_image"
            )
        try:
            if not self.entries:
                self._install()
            if entry.edit.watches_hidden:
                self._watch(entry)
        except BaseException:
            if not self.entries:
                self._uninstall()
            raise
        self.entries.append(entry)
        self._sort()

    def pop(self, entry: Entry) -> None:
        """Take an edit off, from anywhere in the stack; the last one uninstalls the seat."""
        self.entries.remove(entry)
        self._sort()
        for handle in entry.handles:
            handle.remove()
        if not self.entries:
            self._uninstall()

    def _sort(self) -> None:
        self._by_layer: dict[int, list[Entry]] = {}
        for entry in self.entries:
            for layer in entry.edit.layers:
                self._by_layer.setdefault(layer, []).append(entry)

    def _install(self) -> None:
        tower = self.reader.tower
        attentions = [layer.self_attn for layer in tower.layers if hasattr(layer, "self_attn")]
        configs = {id(m.config): m.config for m in [tower, *attentions]}
        for config in configs.values():
            # A config that another attached model shares, or that was copied while attached,
            # already has our name.
            base = str(config._attn_implementation or "eager").removeprefix(PREFIX)
            self._configs.append((config, base))
            # The property's setter would pass the name on to sub-configs.
            config._attn_implementation_internal = _register(base)
        _INSTALLED.add(self)
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
        _INSTALLED.discard(self)
        shared = {id(config) for seat in _INSTALLED for config, _ in seat._configs}
        for config, base in self._configs:
            if id(config) not in shared:
                config._attn_implementation_internal = base
        self._configs.clear()
        if (tower := self.tower()) is not None:
            for layer in tower.layers:
                if hasattr(layer, "self_attn"):
                    _SEATS.pop(layer.self_attn, None)
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
        if tower is not self.tower() or self.paused:
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
            self._offsets = {i: cache.get_mask_sizes(step.length, i)[1] for i in self._by_layer}
        for entry in self.entries:
            entry.edit.begin(step)
            entry.tally.begin(step)
        wants = [e.edit for e in self.entries if e.edit.null_rows and e.edit.layers]
        self.null_batch = 0
        if step.prompt_start:
            self._compared = False
        if wants and not self._compared and self.reader.has_images:
            if step.index > 0 or not step.prompt_end:
                raise NotImplementedError(
                    "this intervention compares the prompt with and without its image and needs "
                    "the whole prompt, image and question, in one block"
                )
            self._compared = True
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

    def attend(self, layer: int, stock: Callable[..., _Attention], call: Call) -> _Attention:
        """The stock attention with this layer's edits written over it."""
        step = self.step
        here = self._by_layer.get(layer)
        if step is None or not here:
            return call.run(stock)
        by_row = [e for e in here if e.edit.rows and e.edit.active(layer, step)]
        plan = step.plan([e.edit for e in by_row]) if by_row else None
        if plan is None:
            out, weights = call.run(stock)
        else:
            # Null rows come after the real ones and are never edited.
            real = call.first(step.batch) if self.null_batch else call
            edited = recompute(real, by_row, plan, layer, step, self._offsets.get(layer, 0))
            if plan.covers_all and not self.null_batch:
                out, weights = edited[0].to(call.query.dtype), edited[1]
            else:
                out, weights = overwrite(call.run(stock), edited, plan, step.batch)
        for entry in here:
            if entry.edit.scales_heads:
                factor = entry.edit.scale_heads(layer, out, step)
                if factor is not None:
                    # The rows without image get the same factors.
                    both = factor.repeat(out.shape[0] // factor.shape[0], 1)
                    out = out * both[:, None, :, None].to(out.dtype)
                    entry.tally.add_factor(layer, factor)
        return out, weights


@contextmanager
def paused(tower: nn.Module) -> Iterator[None]:
    """Forward passes of the tower inside are none of the attached interventions' business."""
    seats = [seat for seat in _INSTALLED if seat.tower() is tower]
    for seat in seats:
        seat.paused = True
    try:
        yield
    finally:
        for seat in seats:
            seat.paused = False


def _register(base: str) -> str:
    """Register the pair of functions for one stock implementation; return their name."""
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
            stock = _stock_attention(type(module), base)  # type: ignore[arg-type]
            found = _SEATS.get(module)
            if found is None or args:
                return stock(module, query, key, value, attention_mask, *args, **kwargs)
            seat, layer = found
            call = Call(module, query, key, value, attention_mask, kwargs, maps=base == "eager")
            return seat.attend(layer, stock, call)

        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


@functools.cache
def _stock_attention(kind: Any, base: str) -> Callable[..., _Attention]:
    """What the module would have called: its own file may override a name, and owns eager."""
    for cls in kind.__mro__:
        home = sys.modules.get(cls.__module__)
        functions = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)
        if functions is not None:
            eager = getattr(home, "eager_attention_forward", None)
            found: Callable[..., _Attention] | None = functions.get(base, eager)
            if found is not None:
                return found
    raise RuntimeError(f"{kind.__name__}: no attention function named {base!r}")
