"""Reading what goes into the text tower: token ids, padding, and where in the prompt we are."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regaze.hooks.host import Host, image_tokens
from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.tokens import Spans, TokenMap


class Reader:
    """Keeps the `TokenMap` of the current prompt up to date and hands out a `Pass` per block."""

    def __init__(self, info: Host, spans: Sequence[Spans] | Spans | None = None) -> None:
        self._model = weakref.ref(info.model)
        self._tower = weakref.ref(info.tower)
        self.sites, self.family = info.sites, info.family
        self._image_tokens = image_tokens(info)
        self.spans: Sequence[Spans] | Spans | None = spans
        self.partial = False
        self.tokens: TokenMap | None = None
        self.inputs: dict[str, Any] = {}
        # All that was read of the prompt: ids (-1 for generated text), and which are no padding.
        self._ids = torch.empty(0, 0, dtype=torch.long)
        self._real = torch.empty(0, 0, dtype=torch.bool)
        self._embedded: Tensor | None = None
        # The cache of this prompt, and those that prompts before it began.
        self._cache: weakref.ref[Any] | None = None
        self._earlier: weakref.WeakSet[Any] = weakref.WeakSet()
        self._masks: PromptMasks | None = None
        self._index = 0
        self._goes_on = False

    @property
    def tower(self) -> Any:
        """The text decoder.

        Raises:
            RuntimeError: The model is gone.
        """
        tower = self._tower()
        if tower is None:
            raise RuntimeError("the model that this was attached to no longer exists")
        return tower

    @property
    def has_images(self) -> bool:
        """Whether any row of the current prompt has image columns."""
        return self.tokens is not None and bool(self.tokens.has_image.any())

    def install(self) -> list[Any]:
        """Watch the ids: at the model's entry, else where they are embedded."""
        model = self._model()
        if model is None:
            raise RuntimeError("the model that this was attached to no longer exists")
        handles = []
        if model is not self.tower:
            handles.append(model.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(model.register_forward_hook(self._leave, always_call=True))
        embeddings = self.tower.get_input_embeddings()
        handles.append(embeddings.register_forward_pre_hook(self._embed, with_kwargs=True))
        return handles

    def forget(self) -> None:
        """Drop the prompt."""
        self.tokens, self._embedded, self.inputs = None, None, {}
        self._goes_on = False

    @torch.compiler.disable
    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is self._model():
            self.inputs = dict(zip(("input_ids",), args, strict=False)) | kwargs
            self._embedded = None

    @torch.compiler.disable
    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if model is self._model():
            self.inputs, self._embedded = {}, None

    @torch.compiler.disable
    def _embed(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A deep copy of the model carries this hook along, and may outlive it.
        tower: Any = self._tower()
        if tower is not None and module is tower.get_input_embeddings():
            self._embedded = args[0] if args else kwargs.get("input")

    def read(self, kwargs: Mapping[str, Any]) -> Pass:
        """Note the next block that enters the tower.

        Args:
            kwargs: The tower's arguments.

        Raises:
            ValueError: The token ids can't be seen and no ``spans`` were given, or the cache holds
                columns that were never seen or belongs to an earlier prompt.
        """
        embeds = kwargs.get("inputs_embeds")
        entering: Tensor = kwargs["input_ids"] if embeds is None else embeds
        batch, length = entering.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self._follow(cache, past)
        candidates = self._last_candidates(length) if cache is not None else 1
        if past == 0:
            self._index = 0
            self._ids = torch.empty(batch, 0, dtype=torch.long)
            self._real = torch.empty(batch, 0, dtype=torch.bool)
        else:
            self._index += 1
            self._rewind(past, batch)
        if past and not self._goes_on and (length == 1 or candidates == length):
            self.tokens = None if self.tokens is None else self.tokens.grow(length)
        else:
            ids = self._block_ids(kwargs, batch, length)
            # All rows that predict but the first hold what a draft proposes after the prompt.
            ids[:, length - candidates + 1 :] = -1
            self._note(ids, self._padding(kwargs, batch, length, past), past)
            self.tokens = self._classify(batch)
            self._masks = PromptMasks(self.tokens)
        self._goes_on = self.partial
        if self.tokens is None or self._masks is None:
            raise RuntimeError("no tokens were read")
        return Pass(
            tokens=self.tokens,
            past=past,
            length=length,
            index=self._index,
            prompt_end=not self.partial,
            n_last=candidates,
            device=entering.device,
            masks=self._masks,
        )

    def _last_candidates(self, length: int) -> int:
        """Rows that predict a token: one, or in assisted decoding the last known and all proposed.

        Assisted decoding asks for the logits of just these rows and brings a cache; a plain
        forward that asks for some logits doesn't.
        """
        keep = self.inputs.get("logits_to_keep")
        return min(keep, length) if isinstance(keep, int) and keep > 1 else 1

    def _follow(self, cache: Any, past: int) -> None:
        """Make sure that a cache that goes on is the current prompt's."""
        if past and cache in self._earlier:
            raise ValueError(
                "the cache is that of a prompt that was begun before another one: an attached "
                "model follows one prompt at a time, so finish each before the next, or put them "
                "in one batch"
            )
        if past == 0:
            before = None if self._cache is None else self._cache()
            if before is not None:
                self._earlier.add(before)
            self._cache = None
            self.note_cache(cache)

    def note_cache(self, cache: Any) -> None:
        """The current prompt's cache; a model that is given none makes one."""
        if cache is not None and self._cache is None:
            self._earlier.discard(cache)
            self._cache = weakref.ref(cache)

    def _rewind(self, past: int, batch: int) -> None:
        """Bring what was read in line with the cache: tokens rolled back, rows repeated."""
        tokens = self.tokens
        if tokens is None or past > tokens.length:
            known = 0 if tokens is None else tokens.length
            raise ValueError(
                f"the cache holds {past} columns but regaze saw only {known}: the prompt was "
                "encoded before attaching (or by another model); attach first, then prefill"
            )
        if batch % tokens.batch:
            raise ValueError(
                f"the batch changed from {tokens.batch} to {batch} rows within one prompt; regaze "
                "can follow repeated rows (beams), not this"
            )
        times = batch // tokens.batch
        if past < tokens.length:
            self.tokens = tokens = tokens.crop(past)
            self._ids, self._real = self._ids[:, :past], self._real[:, :past]
        if times > 1:
            self.tokens = tokens.repeat(times)
            self._ids = self._ids.repeat_interleave(times, 0)
            self._real = self._real.repeat_interleave(times, 0)
            self._masks = PromptMasks(self.tokens)

    def _note(self, ids: Tensor, mask: Tensor | None, past: int) -> None:
        real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.cpu().bool()
        # What was generated since the block before wasn't kept.
        gap = (0, past - self._ids.shape[1])
        pad = torch.nn.functional.pad
        self._ids = torch.cat([pad(self._ids, gap, value=-1), ids.cpu()], 1)
        self._real = torch.cat([pad(self._real, gap, value=True), real], 1)

    def _classify(self, batch: int) -> TokenMap:
        """Read the whole prompt again; what a column is may depend on what comes after it."""
        if self.spans is None:
            tokens = TokenMap.from_ids(self._ids, self._image_tokens, self._real)
        else:
            spans = [self.spans] * batch if isinstance(self.spans, Mapping) else list(self.spans)
            if len(spans) != batch and batch % len(spans) == 0:
                spans = [s for s in spans for _ in range(batch // len(spans))]
            if len(spans) != batch:
                raise ValueError(f"spans are given for {len(spans)} rows, the batch has {batch}")
            length = self._ids.shape[1]
            tokens = TokenMap.from_spans(spans, length, self._real, self.partial)
        return tokens.mark_generated((self._ids == -1) & self._real)

    def _block_ids(self, kwargs: Mapping[str, Any], batch: int, length: int) -> Tensor:
        for ids in (self.inputs.get("input_ids"), kwargs.get("input_ids"), self._embedded):
            if isinstance(ids, Tensor) and ids.shape == (batch, length):
                return ids.cpu().clone()
        if self.spans is None:
            raise ValueError(
                "regaze can't see the prompt's token ids (the model was given inputs_embeds); "
                'pass spans={"image": [(start, end)]} to attach, in columns of the padded batch'
            )
        return torch.zeros(batch, length, dtype=torch.long)

    def _padding(
        self, kwargs: Mapping[str, Any], batch: int, length: int, past: int
    ) -> Tensor | None:
        for mask in (self.inputs.get("attention_mask"), kwargs.get("attention_mask")):
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch:
                return mask[:, past : past + length] if mask.shape[1] > length else mask
        # With a static cache the mask arrives prepared; the last row sees all that isn't padding.
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention")
        if isinstance(mask, Tensor) and mask.ndim == 4:
            last = mask[:, 0, -1, past : past + length].expand(batch, -1)
            return last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        return None
