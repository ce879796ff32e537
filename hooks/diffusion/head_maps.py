"""Maps of each head's attention to words of the prompt, by place in the picture.

They are read in the denoiser's own passes as `regaze.hooks.diffusion.capture` reads them, but head
by head and in all layers that see the text, whatever their resolution. What is computed is
untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.sites import TEXT, Site, find_sites
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.text_maps import text_map
from regaze.hooks.diffusion.watching import watchable, watched
from regaze.hooks.diffusion.works import Run, Work


@dataclass
class HeadMaps:
    """Maps of words, head by head.

    Attributes:
        sites: The layers that were read, in the order in which they run.
        words: The words of the prompt that were looked for, but for those it doesn't hold.
        sums: By layer "H W R C" float32, summed over passes and frames.
        calls: By layer how many were summed.
        why_not: Reasons why some layers couldn't be read, by layer.
    """

    sites: tuple[Site, ...]
    words: tuple[str, ...] = ()
    sums: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)

    def mean(self, site: Site) -> Tensor:
        """A layer's mean map "H W R C": the share of each place's attention on each word."""
        return self.sums[site.name] / self.calls[site.name]

    @property
    def read(self) -> tuple[Site, ...]:
        """The layers of which there are maps."""
        return tuple(site for site in self.sites if site.name in self.sums)


@dataclass(frozen=True, eq=False)
class _Read(Work):
    seen: HeadMaps = field(default_factory=lambda: HeadMaps(()))
    wanted: tuple[str, ...] = ()
    columns: list[list[int]] = field(default_factory=list)

    counted = False

    def begin(self, run: Run) -> Work:
        """Find the words' columns in the prompt of a run."""
        found = {word: _columns(run.text, word) for word in self.wanted}
        self.seen.words = tuple(word for word, columns in found.items() if columns)
        self.columns[:] = [found[word] for word in self.seen.words]
        return self

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """The sites whose maps are read: none in a pass without conditional rows."""
        return () if pass_.rows.cond is None or not self.columns else self.sites

    def attend(self, call: Call) -> Tensor:
        """Read a map; the call stays as it is."""
        seen, name = self.seen, call.site.name
        if name in seen.why_not:
            return call.output
        try:
            map_ = self._map(call)
        except (RuntimeError, ValueError) as error:
            seen.why_not[name] = " ".join(str(error).split())
            return call.output
        seen.sums[name] = seen.sums[name] + map_ if name in seen.sums else map_
        seen.calls[name] = seen.calls.get(name, 0) + 1
        return call.output

    def _map(self, call: Call) -> Tensor:
        """A call's map of the first sample, "H W R C".

        Raises:
            RuntimeError: The call holds a part of the pass's rows only.
            ValueError: Which columns are words, or where its rows are in the picture, isn't known.
        """
        frames = call.samples().frames
        cond = (call.pass_ and call.pass_.rows.cond) or slice(0, 1)
        grouped = text_map(call, slice(cond.start * frames, (cond.start + 1) * frames))
        grid = call.layout.grid(call.site, grouped.shape[2])
        if grid is None:
            raise ValueError(f"the grid of {grouped.shape[2]} image tokens isn't known")
        words = torch.stack([grouped[..., columns].mean(-1) for columns in self.columns], 1)
        shaped = words.reshape(len(words), *words.shape[1:3], -1, *grid[-2:])  # "F W H F' R C"
        return shaped.mean((0, 3)).transpose(0, 1).detach().cpu()


def _columns(text: Sequence[Part], word: str) -> list[int]:
    """The columns of a word in the first prompt of all encoders."""
    return [
        part.columns.start + token
        for part in text
        if part.prompts
        for tokens in part.prompts[0].find(word)
        for token in tokens
    ]


@contextmanager
def head_maps(pipeline: Any, words: Sequence[str]) -> Iterator[HeadMaps]:
    """See what each head attends to in the runs of a pipeline inside.

    Args:
        pipeline: A diffusers pipeline; of a batch its first picture is looked at.
        words: Words or phrases of the prompt.

    Raises:
        TypeError: It is no pipeline with a known denoiser.
        ValueError: No layer sees the text, or the denoiser is compiled.
    """
    denoiser = watchable(pipeline, "look")
    sites = tuple(site for site in find_sites(denoiser) if site.kind in TEXT)
    if not sites:
        raise ValueError(f"no layer of {type(denoiser).__name__} is known to see the text")
    seen = HeadMaps(sites)
    with watched(pipeline, denoiser, _Read(sites, seen=seen, wanted=tuple(words))):
        yield seen
