"""The work of `reweight`: attention to the text with some columns stronger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.perturb import mask_as_numbers
from regaze.hooks.diffusion.sites import Site
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.works import Run, Work
from regaze.interventions.diffusion.word_columns import columns_of, holds

Words = Sequence[tuple[str | int, float]]
Windows = Sequence[tuple[str | int, tuple[float, float]]]


@dataclass(frozen=True)
class Weighted(Work):
    """Scales what words give.

    Attributes:
        words: Words or columns, and their strengths.
        windows: Words or columns, and the shares of the steps from and to which they are scaled.
        how: "values" or "logits".
        absent: The answer to a prompt that lacks a word: "raise", or "skip" the word.
        maps: Map that is scaled: "own" or "first".
        factors: Each sample's columns' strengths, "S T".
        spans: The window of each column, "S T 2" float64.
    """

    words: Words = ()
    windows: Windows = ()
    how: str | None = None
    absent: str = "raise"
    maps: str = "own"
    factors: Tensor | None = None
    spans: Tensor | None = None

    def begin(self, run: Run) -> Work:
        """Find the words in the run's prompts."""
        length = max(part.columns.stop for part in run.text)
        return self._read(run.text, run.samples, length)

    def _read(self, text: Sequence[Part], samples: int, length: int) -> Weighted:
        factors = torch.ones(samples, length, dtype=torch.float32, device="cpu")
        spans = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu").repeat(
            samples, length, 1
        )
        for sample in range(samples):
            for word, strength in self.words:
                if self.absent == "raise" or holds(text, sample, word):
                    factors[sample, columns_of("reweight", word, text, sample, length)] *= strength
            for word, window in self.windows:
                if self.absent == "raise" or holds(text, sample, word):
                    columns = columns_of("reweight", word, text, sample, length)
                    spans[sample, columns] = torch.tensor(window, dtype=spans.dtype, device="cpu")
        return replace(self, factors=factors, spans=spans if self.windows else None)

    def attending(self, pass_: Pass) -> tuple[Site, ...]:
        """All layers, in passes with conditional rows."""
        return () if pass_.rows.cond is None else self.sites

    def attend(self, call: Call) -> Tensor:
        """Head outputs with words as strong as was asked."""
        factors, active = self._of_rows(call)
        if call.site.kind == "cross":
            return self._cross(call, factors, active)
        if self.maps == "first":
            raise NotImplementedError('reweight: maps="first" is a form of cross-attention')
        image, text, rows = call.image(), call.text(), call.query.shape[2]
        if image.start >= image.stop:
            return call.output
        columns = factors.new_ones(len(factors), call.key.shape[2])
        columns[:, text] = factors.where(active, 1.0)[:, : text.stop - text.start]
        out = []
        for part in (slice(0, image.start), image, slice(image.stop, rows)):
            if part == image:
                out.append(self._weighted(call, call.query, call.key, image, columns))
            elif part.start < part.stop:
                mask = _rows(call.mask, part)
                named = {} if mask is None else {"attn_mask": mask}
                out.append(call.kernel(call.query[:, :, part], call.key, call.value, **named))
        return torch.cat(out, 2)

    def _cross(self, call: Call, factors: Tensor, active: Tensor) -> Tensor:
        query, key, every = call.query, call.key, slice(None)
        if self.maps == "own":
            return self._weighted(call, query, key, every, factors.where(active, 1.0))
        query, key = (_first(call, x) for x in (query, key))
        if bool(active.all()):
            return self._weighted(call, query, key, every, factors)
        # Columns outside of their windows are those of each prompt's own map.
        first = self._weighted(call, query, key, every, factors * active)
        return first + self._weighted(call, call.query, call.key, every, (~active).to(factors))

    def _weighted(
        self, call: Call, query: Tensor, key: Tensor, rows: slice, factors: Tensor
    ) -> Tensor:
        mask = _rows(call.mask, rows)
        value, named = call.value, {} if mask is None else {"attn_mask": mask}
        if self.how == "values":
            value = value * factors[:, None, :, None].to(value)
        else:
            bias = factors.log()[:, None, None]
            bias = bias if mask is None else bias + mask_as_numbers(mask)
            named["attn_mask"] = bias.to(query.dtype)
        return call.kernel(query[:, :, rows], key, value, **named)

    def _of_rows(self, call: Call) -> tuple[Tensor, Tensor]:
        """Each row's factors, "B T", 1 for other branches, and which columns' windows are open."""
        pass_ = call.pass_
        if pass_ is None:
            raise RuntimeError("reweight edits passes of a denoiser")
        found, cond = self, pass_.rows.cond or slice(0, pass_.rows.batch)
        length = call.layout.n_words
        if found.factors is None:  # A bare denoiser, which was given no prompt.
            found = self._read((Part("text", slice(0, length), None),), 1, length)
        given, spans = found.factors, found.spans
        assert given is not None  # noqa: S101 (read above)
        factors = given.new_ones(pass_.rows.batch, length)
        active = torch.ones(pass_.rows.batch, length, dtype=torch.bool, device="cpu")
        each = (cond.stop - cond.start) // len(given)
        factors[cond, : given.shape[1]] = given.repeat_interleave(each, 0)
        if spans is not None:
            now = (spans[..., 0] <= pass_.progress) & (pass_.progress < spans[..., 1])
            active[cond, : given.shape[1]] = now.repeat_interleave(each, 0)
        frames = call.samples().frames
        both = (x.to(call.query.device).repeat_interleave(frames, 0) for x in (factors, active))
        return next(both), next(both)


def _first(call: Call, x: Tensor) -> Tensor:
    """The conditional rows replaced by the first sample's."""
    if call.pass_ is None:
        raise RuntimeError("reweight edits passes of a denoiser")
    rows, frames = call.pass_.rows, call.samples().frames
    cond = rows.cond or slice(0, rows.batch)
    one = x[cond.start * frames : (cond.start + 1) * frames]
    copies = one.repeat(cond.stop - cond.start, 1, 1, 1)
    return torch.cat([x[: cond.start * frames], copies, x[cond.stop * frames :]])


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """A kernel's mask for some of its rows."""
    whole = mask is None or mask.shape[-2] == 1 or rows == slice(None)
    return mask if whole or mask is None else mask[..., rows, :]
