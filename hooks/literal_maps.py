"""A text tower's attention by explicit maps: softmax(scale Q K' + mask), built in full and edited.

Slow, literal, independent of the engine. One unpadded prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regaze.hooks.caches import find_cache
from regaze.hooks.host import Host
from regaze.hooks.literal import Map, MapForm, OutputForm
from regaze.hooks.literal_prompt import Prompt

NAME = "regaze_literal_maps"


@dataclass(eq=False)
class Pass:
    """One run of the text tower: the prompt, then what is generated.

    Attributes:
        prompt: Contents of the prompt's columns.
        forms: Edits of maps and of heads' outputs, in order.
        factors: Per layer, one factor per head.
        end: Columns so far, those of the current block included.
        start: Columns before the current block.
        was_read: Per column, True if it was read (in a block of several), False if generated.
        hidden: Per layer, what entered it, of all columns.
        heads: Per layer, the prompt's last head outputs "H D", before the factors.
        last: Per number in ``reads`` and layer, the weights "H T" of the prompt's last row.
        maps: Number of maps built.
        row: The row that ``heads`` are of.
        looks: Layers whose maps are kept.
        before: Number of forms whose edits are in the maps that are kept; those behind them act
            in the layers before alone.
        weights: Maps of these layers in the block that was run last.
        blocks: Maps of these layers in all blocks.
        reads: Numbers of forms after whose edits of logits the prompt's last row is read.
    """

    prompt: Prompt
    forms: Sequence[MapForm | OutputForm]
    factors: Mapping[int, Tensor]
    end: int = 0
    start: int = 0
    was_read: list[bool] = field(default_factory=list)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[int, Tensor] = field(default_factory=dict)
    last: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    maps: int = 0
    row: int = -1
    looks: Collection[int] = ()
    before: int = 0
    weights: dict[int, Tensor] = field(default_factory=dict)
    blocks: list[dict[int, Tensor]] = field(default_factory=list)
    reads: Collection[int] = ()

    def count(self, tower: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note a block that enters the tower; all layers are to compute all its rows."""
        if _passes[-1] is not self:
            return None  # A run of its own, inside of this one.
        embeds = kwargs.get("inputs_embeds")
        given: Any = embeds if embeds is not None else kwargs.get("input_ids", *args[:1])
        cache = find_cache(kwargs)
        self.start = int(cache.get_seq_length()) if cache is not None else 0
        self.end = self.start + given.shape[1]
        self.was_read = self.was_read[: self.start] + [given.shape[1] > 1] * given.shape[1]
        if self.looks:
            self.weights = {}
            self.blocks.append(self.weights)
        return args, {k: v for k, v in kwargs.items() if k != "logits_to_keep"}

    def look(self, layer: int, hidden: Tensor) -> None:
        """Keep what enters a layer."""
        if _passes[-1] is not self:
            return
        if self.start:
            # Columns come last but one, after the streams of a tower that has several.
            before = self.hidden[layer][..., : self.start, :].to(hidden)
            hidden = torch.cat([before, hidden], -2)
        self.hidden[layer] = hidden

    def edit(self, layer: int, scores: Tensor, seen: Tensor, some: slice = slice(None)) -> Tensor:
        """The edits on a layer's map.

        Args:
            layer: Layer index.
            scores: "1 H Q K".
            seen: Bool "1 1 Q K".
            some: The forms whose edits act; all by default.
        """
        forms = [f for f in self.forms[some] if isinstance(f, MapForm) and layer in f.layers]
        if not forms:
            return scores
        # A sliding window's first columns are gone: they count as unseen.
        gone = self.end - scores.shape[-1]
        scores, seen = pad(scores, (gone, 0)), pad(seen, (gone, 0))
        about = self._map(layer, seen)
        for form in forms:
            scores = form.edit(scores, about)
        return scores[..., gone:]

    def weigh(self, layer: int, weights: Tensor, scores: Tensor, seen: Tensor) -> Tensor:
        """The edits of a layer's weights "1 H Q K"."""
        edits = [f for f in self.forms if isinstance(f, MapForm) and layer in f.layers]
        forms = [form.weigh for form in edits if form.weigh is not None]
        if not forms:
            return weights
        gone = self.end - scores.shape[-1]
        weights, scores, seen = (pad(x, (gone, 0)) for x in (weights, scores, seen))
        about = self._map(layer, seen)
        for weigh in forms:
            weights = weigh(weights, scores, about)
        return weights[..., gone:]

    def edit_outputs(self, layer: int, out: Tensor, seen: Tensor) -> Tensor:
        """The edits on what a layer's heads put out, "1 H Q D"."""
        for form in self.forms:
            if isinstance(form, OutputForm) and layer in form.layers:
                gone = self.end - seen.shape[-1]
                out = form.edit(out, self._map(layer, pad(seen, (gone, 0))))
        return out

    def _map(self, layer: int, seen: Tensor) -> Map:
        more = [False] * (self.end - len(self.prompt.image))
        rows = range(self.start, self.end)
        last = [row == self.end - 1 and any(self.prompt.image) for row in rows]

        def mark(which: Sequence[bool]) -> Tensor:
            return torch.tensor(which, device=seen.device)

        return Map(
            layer,
            seen,
            mark([*self.prompt.image, *more][: self.end])[None, None, None],
            mark([*self.prompt.system, *more][: self.end])[None, None, None],
            mark([*self.prompt.structure, *more][: self.end])[None, None, None],
            mark(self.was_read)[None, None, None],
            mark([self.prompt.is_text(row) for row in rows])[None, None, :, None],
            mark(last)[None, None, :, None],
            self.hidden.get(
                layer, torch.empty(1, self.end, 0, dtype=torch.float32, device="cpu")
            ).to(seen.device),
        )


_passes: list[Pass] = []


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    now, layer = _passes[-1], module.layer_idx
    now.maps += 1
    if s_aux is not None:
        raise NotImplementedError(
            f"layer {layer} has learned attention sinks beside its columns, which literal maps "
            "don't hold"
        )
    group = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query.float() @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    seen = torch.ones_like(scores[:, :1], dtype=torch.bool)
    if mask is not None:
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen & shown[..., : scores.shape[-1]]
    if layer in now.looks:
        now.weights[layer] = _softmax(now.edit(layer, scores, seen, slice(now.before)), seen)
    done = 0  # An edit may keep what it saw, so each is made once.
    for count in sorted(now.reads) if now.start == 0 else ():
        scores, done = now.edit(layer, scores, seen, slice(done, count)), count
        now.last[count, layer] = _softmax(scores, seen)[0, :, -1]
    scores = now.edit(layer, scores, seen, slice(done, None)).masked_fill(~seen, -torch.inf)
    weights = _softmax(scores, seen)
    weights = now.weigh(layer, weights, scores, seen)
    out = now.edit_outputs(layer, weights @ value, seen)
    if now.start == 0:
        now.heads[layer] = out[0, :, now.row].clone()
    if layer in now.factors:
        out = out * now.factors[layer].to(out)[None, :, None, None]
    return out.transpose(1, 2).to(query.dtype), weights


def _softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Weights; a row may see nothing at all."""
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def running(host: Host, now: Pass) -> Iterator[Pass]:
    """Let the text tower run on explicit maps inside."""
    tower: Any = host.tower
    # Layers of different shapes have a config each.
    configs = {id(m.config): m.config for m in tower.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation_internal) for c in configs.values()]

    def looker(layer: int) -> Callable[..., None]:
        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            now.look(layer, args[0] if args else kwargs["hidden_states"])

        return look

    handles = [tower.register_forward_pre_hook(now.count, with_kwargs=True)]
    try:
        for index, layer in enumerate(tower.layers):
            handles.append(layer.register_forward_pre_hook(looker(index), with_kwargs=True))
        for config, _ in before:
            config._attn_implementation_internal = NAME
        _passes.append(now)
        yield now
    finally:
        if now in _passes:
            _passes.remove(now)
        for config, name in before:
            config._attn_implementation_internal = name
        for handle in handles:
            handle.remove()
