"""The seat: the ordered stack of edits of one text tower, and what runs them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regaze.hooks.dispatch import PREFIX, SEATS, Attention, register, stock_attention
from regaze.hooks.null_prompt import NullPrompt
from regaze.hooks.passes import Pass, Wanted
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
        self.pass_: Pass | None = None
        self._null: NullPrompt | None = None
        self.paused = False
        self._compared = False
        self._offsets: dict[int, int] = {}
        self._handles: list[Any] = []
        self._watching: list[Any] = []
        self._configs: list[tuple[Any, str]] = []

    # -- installing ---------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Put an edit on top of the stack; the first one installs the seat.

        Raises:
            ValueError: It contradicts one that is already there.
        """
        null = {e.edit.null_positions for e in [*self.entries, entry] if e.edit.null_prompt}
        if len(null) > 1:
            raise ValueError(
                'interventions that remove the image as "drop" and as "mask" can\'t share a pass; '
                "give both the same null_image"
            )
        try:
            if not self.entries:
                self._install()
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
        if not self.entries:
            self._uninstall()

    def _attentions(self) -> dict[int, Any]:
        tower = self.reader.tower
        return {site.layer: tower.get_submodule(site.path) for site in self.reader.sites}

    def _sort(self) -> None:
        self._by_layer: dict[int, list[Entry]] = {}
        for entry in self.entries:
            for layer in entry.edit.layers:
                self._by_layer.setdefault(layer, []).append(entry)

    def _install(self) -> None:
        tower, attentions = self.reader.tower, self._attentions()
        configs = {id(m.config): m.config for m in [tower, *attentions.values()]}
        bases = {}
        for key, config in configs.items():
            # A config that another attached model shares, or that was copied while attached,
            # already has our name.
            base = str(config._attn_implementation or "eager").removeprefix(PREFIX)
            self._configs.append((config, base))
            bases[key] = base
            # The property's setter would pass the name on to sub-configs.
            config._attn_implementation_internal = register(base)
        _INSTALLED.add(self)
        for layer, module in attentions.items():
            stock = stock_attention(type(module), bases[id(module.config)])
            SEATS[module] = (self, layer, stock)
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
        if self.tower() is not None:
            for module in self._attentions().values():
                SEATS.pop(module, None)
        self.pass_ = None
        self.reader.forget()

    def _watch(self) -> None:
        """Let edits see the layers' inputs in this pass; decode steps run without these hooks."""
        layers = self.reader.tower.layers
        for entry in self.entries:
            if entry.edit.watches_hidden:
                self._watching += [
                    layers[index].register_forward_pre_hook(
                        self._watcher(entry, index), with_kwargs=True
                    )
                    for index in entry.edit.layers
                ]

    def _watcher(self, entry: Entry, index: int) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.pass_ is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                entry.edit.see_hidden(index, hidden[:, : self.pass_.length], self.pass_)

        return see

    # -- around one forward pass of the tower -------------------------------------------------

    @torch.compiler.disable
    def _begin(
        self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if tower is not self.tower() or self.paused:
            return None
        for config, _ in self._configs:
            now = config._attn_implementation_internal  # The public property is slow.
            if not str(now).startswith(PREFIX):
                raise RuntimeError(
                    f"the model's attention implementation was changed to {now!r} while "
                    "interventions were attached, which would silently switch them off; detach "
                    "first, then change it"
                )
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        for name in self.reader.family.drops:
            kwargs.pop(name, None)
        self.pass_ = pass_ = self.reader.read(kwargs)
        cache = kwargs.get("past_key_values")
        self._offsets = {}
        if cache is not None and any(getattr(cache, "is_sliding", ())):
            keys = {site.layer: site.kv_layer for site in self.reader.sites}
            self._offsets = {
                i: cache.get_mask_sizes(pass_.length, keys[i])[1] for i in self._by_layer
            }
        for entry in self.entries:
            entry.edit.begin(pass_)
            entry.tally.begin(pass_)
        if pass_.prompt_start:
            self._compared = False
        wants = [e.edit for e in self.entries if e.edit.null_prompt and e.edit.layers]
        self._null = None
        if wants and not self._compared and self.reader.has_images:
            if pass_.index > 0 or not pass_.prompt_end:
                raise NotImplementedError(
                    "this intervention compares the prompt with and without its image and needs "
                    "the whole prompt, image and question, in one block"
                )
            self._compared = True
            self._null = NullPrompt.of(pass_)
            kwargs = self._null.pack(kwargs, wants[0].null_positions, tower.config)
        if not pass_.decodes:
            self._watch()
        return (), kwargs

    @torch.compiler.disable
    def _end(self, tower: nn.Module, args: Any, output: Any) -> Any:
        if tower is not self.tower():
            return None
        for handle in self._watching:
            handle.remove()
        self._watching.clear()
        null, self._null, self.pass_ = self._null, None, None
        if output is None:
            return None
        if null is not None:
            output = null.cut(output)
        self.reader.note_cache(getattr(output, "past_key_values", None))
        return output

    # -- inside one attention call ------------------------------------------------------------

    def attend(self, layer: int, stock: Callable[..., Attention], call: Call) -> Attention:
        """The stock attention with this layer's edits written over it."""
        pass_, null = self.pass_, self._null
        here = self._by_layer.get(layer)
        run = call.run if null is None else functools.partial(null.run, call)
        if pass_ is None or not here:
            return run(stock)
        by_row = [e for e in here if e.edit.rows and e.edit.active(layer, pass_)]
        plan = pass_.plan(_asked(by_row), call.query.device) if by_row else None
        if plan is None:
            out, weights = run(stock)
        else:
            real = call if null is None else null.real(call)
            edited = recompute(real, by_row, plan, layer, pass_, self._offsets.get(layer, 0))
            if plan.covers_all and null is None:
                out, weights = edited[0].to(call.query.dtype), edited[1]
            else:
                out, weights = overwrite(run(stock), edited, plan)
        for entry in here:
            if entry.edit.scales_heads:
                blind = None if null is None else null.last_row(out)
                factor = entry.edit.scale_heads(layer, out[:, : pass_.length], blind, pass_)
                if factor is not None:
                    # The prompt without image gets the same factors.
                    out = out * factor[:, None, :, None].to(out.dtype)
                    entry.tally.add_factor(layer, factor)
        return out, weights


def _asked(entries: Sequence[Entry]) -> list[Wanted]:
    """The rows that edits ask for."""
    return [(e.edit.rows, e.edit.reads_only) for e in entries if e.edit.rows is not None]


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
