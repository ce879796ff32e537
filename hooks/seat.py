"""The seat: the ordered stack of edits of one text tower, and what runs them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks import null_rows
from regaze.hooks.dispatch import PREFIX, SEATS, Attention, register
from regaze.hooks.edits import Step
from regaze.hooks.reading import Reader
from regaze.hooks.rows import Call, Entry, overwrite, recompute

_INSTALLED: weakref.WeakSet[Seat] = weakref.WeakSet()


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
        self._text_columns: Tensor | None = None
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

    def _attentions(self) -> list[Any]:
        return [
            layer.self_attn for layer in self.reader.tower.layers if hasattr(layer, "self_attn")
        ]

    def _sort(self) -> None:
        self._by_layer: dict[int, list[Entry]] = {}
        for entry in self.entries:
            for layer in entry.edit.layers:
                self._by_layer.setdefault(layer, []).append(entry)

    def _install(self) -> None:
        tower, attentions = self.reader.tower, self._attentions()
        configs = {id(m.config): m.config for m in [tower, *attentions]}
        for config in configs.values():
            # A config that another attached model shares, or that was copied while attached,
            # already has our name.
            base = str(config._attn_implementation or "eager").removeprefix(PREFIX)
            self._configs.append((config, base))
            # The property's setter would pass the name on to sub-configs.
            config._attn_implementation_internal = register(base)
        _INSTALLED.add(self)
        for module in attentions:
            SEATS[module] = (self, module.layer_idx)
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
                    SEATS.pop(layer.self_attn, None)
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
            tower: Any = self.tower()
            mine = tower is not None and module is tower.layers[index]
            if self.step is not None and mine:
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
            self._text_columns = None
            if self._skips_masks() and wants[0].null_positions == "drop":
                self._text_columns = null_rows.text_columns(kwargs, step)
            kwargs = null_rows.add_null_rows(
                kwargs, step, wants[0].null_positions, self.reader.tower.config
            )
            if self._text_columns is not None:
                kwargs["attention_mask"] = None
        return (), kwargs

    @torch.compiler.disable
    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        if tower is not self.tower():
            return None
        batch, self.null_batch, self.step = self.null_batch, 0, None
        return null_rows.drop_null_rows(output, batch) if batch and output is not None else None

    # -- inside one attention call ------------------------------------------------------------

    def attend(self, layer: int, stock: Callable[..., Attention], call: Call) -> Attention:
        """The stock attention with this layer's edits written over it."""
        step = self.step
        here = self._by_layer.get(layer)
        if step is None or not here:
            return self._run(stock, call)
        by_row = [e for e in here if e.edit.rows and e.edit.active(layer, step)]
        plan = step.plan([e.edit for e in by_row]) if by_row else None
        run = functools.partial(self._run, stock, call)
        if plan is None:
            out, weights = run()
        else:
            # Null rows come after the real ones and are never edited.
            real = call.first(step.batch) if self.null_batch else call
            edited = recompute(real, by_row, plan, layer, step, self._offsets.get(layer, 0))
            if plan.covers_all and not self.null_batch:
                out, weights = edited[0].to(call.query.dtype), edited[1]
            else:
                out, weights = overwrite(run(), edited, plan, step.batch)
        for entry in here:
            if entry.edit.scales_heads:
                factor = entry.edit.scale_heads(layer, out, step)
                if factor is not None:
                    # The rows without image get the same factors.
                    both = factor.repeat(out.shape[0] // factor.shape[0], 1)
                    out = out * both[:, None, :, None].to(out.dtype)
                    entry.tally.add_factor(layer, factor)
        return out, weights

    def _run(self, stock: Callable[..., Attention], call: Call) -> Attention:
        if self.null_batch and self._text_columns is not None:
            return null_rows.run_apart(stock, call, self.null_batch, self._text_columns)
        return call.run(stock)

    def _skips_masks(self) -> bool:
        """Whether a causal prompt needs no mask: the kernel knows, and no window slides."""
        config, base = self._configs[0]
        causal = all(getattr(m, "is_causal", False) for m in self._attentions())
        kernel = base == "sdpa" or "flash" in base
        return kernel and causal and null_rows.sliding_window(config) is None


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
