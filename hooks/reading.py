"""Reading what goes into the text tower: token ids, padding, and where in the prompt we are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.callers import Callers, Generating
from regaze.hooks.host import Host, image_tokens
from regaze.hooks.passes import Pass, PromptMasks
from regaze.hooks.prompts import Prompt, empty
from regaze.hooks.tokens import Kind, Spans, TokenMap


@dataclass(frozen=True)
class Block:
    """The input of the tower in one pass, with all that may tell what it is.

    Attributes:
        kwargs: The tower's arguments.
        outer: Arguments of the model that was attached to; empty if it wasn't called.
        embedded: Ids that went through the tower's embeddings for this call, if any.
        generating: Facts that a running ``generate`` holds.
        partial: The caller says that the prompt goes on.
        past: Columns before the block.
    """

    kwargs: Mapping[str, Any]
    outer: Mapping[str, Any]
    embedded: Tensor | None
    generating: Generating
    partial: bool
    past: int

    @property
    def entering(self) -> Tensor:
        """The tower's input: embeddings "B Q E" or ids "B Q"."""
        embeds = self.kwargs.get("inputs_embeds")
        found: Tensor = self.kwargs["input_ids"] if embeds is None else embeds
        return found


class Reader:
    """Tells the columns of prompts apart and hands out a `Pass` per block; remembers nothing."""

    def __init__(self, host: Host, spans: Sequence[Spans] | Spans | None = None) -> None:
        self.spans: Sequence[Spans] | Spans | None = spans
        self.callers = Callers(host.tower)
        self._image_tokens = image_tokens(host)

    def agrees(self, host: Host) -> bool:
        """Return whether the host's processor tells the same tokens apart."""
        return image_tokens(host) == self._image_tokens

    def read(self, block: Block, before: Prompt | None) -> tuple[Pass, Prompt]:
        """Read the next block of a prompt.

        Args:
            block: The block.
            before: Prompt that the cache holds, if it is known.

        Returns:
            The pass, and what is known of the prompt after it (without works).

        Raises:
            ValueError: The token ids can't be seen and no ``spans`` were given, or the cache holds
                columns that were never seen.
        """
        batch, length = block.entering.shape[:2]
        past, candidates = block.past, block.generating.candidates
        before = _resume(before, past, batch) if past else None
        partial = block.partial or block.generating.partial
        if before is not None and _goes_on(before, past, length, candidates):
            prompt = before.having(tokens=before.tokens.grow(length), index=before.index + 1)
        else:
            prompt = self._read_more(block, before, batch, length, past, partial)
        if partial:
            prompt = prompt.having(parts=prompt.parts | {past + length})
        pass_ = Pass(
            tokens=prompt.tokens,
            past=past,
            length=length,
            index=prompt.index,
            prompt_end=not partial,
            n_last=candidates + 1,
            device=block.entering.device,
            masks=prompt.masks,
            inputs=block.outer,
            ids=prompt.ids,
        )
        return pass_, prompt

    def _read_more(
        self,
        block: Block,
        before: Prompt | None,
        batch: int,
        length: int,
        past: int,
        partial: bool,
    ) -> Prompt:
        """A prompt with the block behind it, or one that begins."""
        ids, real = empty(batch) if before is None else (before.ids, before.real)
        _refuse_packed(block)
        new = self._block_ids(block, batch, length)
        # Behind the prompt stand the tokens that a draft proposes.
        new[:, length - block.generating.candidates :] = -1
        padding = self._padding(block, batch, length, past)
        ids, real = _append(ids, real, new, padding, past)
        _refuse_restarts(block.kwargs.get("position_ids"), real[:, past:])
        tokens = self._classify(ids, real, partial)
        fields: dict[str, Any] = {
            "tokens": tokens,
            "ids": ids,
            "real": real,
            "masks": PromptMasks(tokens),
        }
        if before is None:
            return Prompt(**fields, index=0)
        return before.having(**fields, index=before.index + 1)

    def _classify(self, ids: Tensor, real: Tensor, partial: bool) -> TokenMap:
        """Read the whole prompt again; what a column is may depend on what comes after it."""
        batch, length = ids.shape
        if self.spans is None:
            tokens = TokenMap.from_ids(ids, self._image_tokens, real)
        else:
            spans = [self.spans] * batch if isinstance(self.spans, Mapping) else list(self.spans)
            if len(spans) != batch and batch % len(spans) == 0:
                spans = [s for s in spans for _ in range(batch // len(spans))]
            if len(spans) != batch:
                raise ValueError(f"spans are given for {len(spans)} rows, the batch has {batch}")
            tokens = TokenMap.from_spans(spans, length, real, partial)
        return tokens.mark_generated((ids == -1) & real)

    def _block_ids(self, block: Block, batch: int, length: int) -> Tensor:
        for ids in self._seen_ids(block):
            if isinstance(ids, Tensor) and ids.shape == (batch, length):
                return ids.cpu().clone()
        if self.spans is None:
            raise ValueError(
                "regaze can't see the prompt's token ids (the model was given inputs_embeds); "
                'pass spans={"image": [(start, end)]} to attach, in columns of the padded batch'
            )
        return torch.zeros(batch, length, dtype=torch.long, device="cpu")

    def _seen_ids(self, block: Block) -> Iterator[Any]:
        yield block.outer.get("input_ids")
        for variables in self.callers.arguments():
            yield variables.get("input_ids")
        yield block.kwargs.get("input_ids")
        yield block.embedded

    def _padding(self, block: Block, batch: int, length: int, past: int) -> Tensor | None:
        for mask in self._seen_masks(block):
            if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch:
                found = mask[:, past : past + length] if mask.shape[1] > length else mask
                if found.shape[1] != length:
                    raise ValueError(
                        f"the attention mask has {mask.shape[1]} columns, but this block ends at "
                        f"column {past + length}"
                    )
                return found
        # With a static cache the mask arrives prepared; the last row sees all that isn't padding.
        mask = block.kwargs.get("attention_mask")
        if isinstance(mask, Mapping):
            mask = mask.get("full_attention")
        if isinstance(mask, Tensor) and mask.ndim == 4:
            return _padding_in(mask[:, 0, :, past : past + length]).expand(batch, -1)
        return None

    def _seen_masks(self, block: Block) -> Iterator[Any]:
        yield block.outer.get("attention_mask")
        for variables in self.callers.arguments():
            yield variables.get("attention_mask")
        yield block.kwargs.get("attention_mask")


def _resume(before: Prompt | None, past: int, batch: int) -> Prompt:
    """Bring what was read in line with the cache, where tokens were rolled back.

    Raises:
        ValueError: The cache holds what was never read, or other rows.
    """
    if before is None or past > before.tokens.length:
        known = 0 if before is None else before.tokens.length
        raise ValueError(
            f"the cache holds {past} columns but regaze saw only {known}: the prompt was "
            "encoded before attaching (or by another model); attach first, then prefill"
        )
    tokens = before.tokens
    if batch != tokens.batch:
        raise ValueError(
            f"the batch changed from {tokens.batch} to {batch} rows within one prompt, and its "
            "cache wasn't asked for that: move its rows by batch_repeat_interleave, "
            "batch_select_indices or reorder_cache, which are followed"
        )
    if past == tokens.length:
        return before
    parts = frozenset(end for end in before.parts if end <= past)
    if bool((tokens.kinds[:, past : past + 1] != Kind.GENERATED).any()):
        # Cut off within the prompt: what follows is more of it.
        parts |= {past}
    ids, real = before.ids[:, :past], before.real[:, :past]
    return before.having(tokens=tokens.crop(past), ids=ids, real=real, parts=parts)


def _goes_on(before: Prompt, past: int, length: int, candidates: int) -> bool:
    """Return whether a block holds generated tokens, rather than more of the prompt."""
    return past not in before.parts and length == candidates + 1


_PACKED = (
    "several prompts stand in one row of the batch ({how}), and regaze reads one prompt a row: "
    "give each a row of its own, padded on the left"
)


def _refuse_packed(block: Block) -> None:
    """Check that a kernel isn't told of several prompts in one row."""
    if told := [name for name in ("cu_seq_lens_q", "block_table") if name in block.kwargs]:
        raise NotImplementedError(
            _PACKED.format(how=f"{told[0]}, as generate_batch and flattening collators pass it")
        )


def _refuse_restarts(positions: Any, real: Tensor) -> None:
    """Check that positions don't begin anew within a row.

    Args:
        positions: "B|1 Q", or "axes B|1 Q", of which the first counts along the prompt.
        real: "B Q", which tokens are no padding.
    """
    if not isinstance(positions, Tensor) or positions.shape[-1] != real.shape[1]:
        return
    at = (positions if positions.ndim == 2 else positions[0]).cpu().expand(real.shape)
    first = at.gather(1, real.int().argmax(1, keepdim=True))
    falls = (at[:, 1:] <= first) & (at[:, :-1] > first) & real[:, 1:] & real[:, :-1]
    if bool(falls.any()):
        raise NotImplementedError(_PACKED.format(how="position_ids begin anew"))


def _padding_in(mask: Tensor) -> Tensor:
    """Return the tokens of a block that are no padding, "B Q", by its rows' mask "B Q Q".

    Raises:
        NotImplementedError: The last row doesn't see tokens that see themselves.
    """
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    last, own = seen[:, -1], seen.diagonal(dim1=1, dim2=2)
    # Kernels that can't do without have rows of padding see everything.
    hidden = own & ~last & ~seen.all(-1)
    if bool(hidden.any()):
        raise NotImplementedError(
            "the attention mask hides tokens from the last row that see themselves, so they aren't "
            "padding: regaze reads one prompt a row, all of which its last row sees. Give a mask "
            "of two dimensions, and packed prompts a row each"
        )
    return last


def _append(
    ids: Tensor, real: Tensor, new: Tensor, mask: Tensor | None, past: int
) -> tuple[Tensor, Tensor]:
    """Ids and padding with those of a block behind them."""
    seen = (
        torch.ones(new.shape, dtype=torch.bool, device="cpu") if mask is None else mask.cpu().bool()
    )
    # What was generated since the block before wasn't kept.
    gap = (0, past - ids.shape[1])
    pad = torch.nn.functional.pad
    return (
        torch.cat([pad(ids, gap, value=-1), new.cpu()], 1),
        torch.cat([pad(real, gap, value=True), seen], 1),
    )
