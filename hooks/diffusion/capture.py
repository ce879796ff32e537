"""capture: what each word of the prompt was attended from, while a pipeline runs as it does.

Maps are read in the denoiser's own passes, of the conditional rows, after whatever is attached has
moved its latents; what it computes is untouched, but that a layer on another attention backend runs
torch's kernel meanwhile. Of each map only the text's columns are formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.call import Call
from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.fork import is_compiled
from regaze.hooks.diffusion.host import find_denoisers
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.seat import known_seat, seat_of
from regaze.hooks.diffusion.sites import TEXT, Site, choose, find_sites
from regaze.hooks.diffusion.text import Part
from regaze.hooks.diffusion.text_maps import Reader
from regaze.hooks.diffusion.works import Run, Work


@dataclass
class Seen:
    """Text maps read while a pipeline ran.

    Attributes:
        layers: The layers that were read.
        steps: Per pass of the denoiser "B F R C T" float32: the mean over layers and heads, for
            samples, frames, rows and columns of the image and tokens of the text.
        text: The parts of the text stream.
    """

    layers: tuple[Site, ...]
    steps: list[Tensor] = field(default_factory=list)
    text: tuple[Part, ...] = ()

    def map(self, words: str, sample: int = 0, steps: slice = slice(None)) -> Tensor:
        """The mean map "F R C" of a word or phrase, over all its tokens and some passes.

        Args:
            words: A word or phrase of the prompt.
            sample: Number of the picture in the batch.
            steps: Passes to average; by default all.

        Raises:
            ValueError: The prompt doesn't hold them, or nothing was seen.
        """
        if not self.steps:
            raise ValueError("nothing was seen: run the pipeline inside of `with capture(...)`")
        columns = []
        for part in self.text:
            prompt = None if part.prompts is None else part.prompts[sample]
            found = prompt.find(words) if prompt else []
            columns += [part.columns.start + i for tokens in found for i in tokens]
        if not columns:
            listed = [p.prompts[sample].listed() for p in self.text if p.prompts]
            raise ValueError(f"{words!r} isn't in the prompt; its tokens are {'; '.join(listed)}")
        return torch.stack([one[sample] for one in self.steps[steps]])[..., columns].mean((0, -1))

    def iou(self, first: str, second: str, sample: int = 0, threshold: float = 0.5) -> float:
        """The overlap of two concepts' places: intersection over union of their bright regions.

        Args:
            first: A word or phrase of the prompt.
            second: Another word or phrase of the prompt.
            sample: Number of the picture in the batch.
            threshold: Share of the way from a map's smallest to its largest value from which on it
                is bright.
        """
        bright = []
        for words in (first, second):
            map_ = self.map(words, sample)
            low, high = map_.min(), map_.max()
            bright.append(map_ >= low + threshold * (high - low))
        both, either = bright[0] & bright[1], bright[0] | bright[1]
        return float(both.sum() / either.sum())


@dataclass(frozen=True, eq=False)
class _Capture(Work):
    """Reads text maps in the denoiser's own passes."""

    seen: Seen = field(default_factory=lambda: Seen(()))
    readers: list[Reader] = field(default_factory=list)

    counted = False

    def begin(self, run: Run) -> Work:
        """Begin a run, whose prompts are read."""
        self.seen.text = run.text
        return replace(self, readers=[])

    def before(self, pass_: Pass) -> None:
        """Read the pass's maps, if it has conditional rows."""
        self.readers[:] = [] if pass_.rows.cond is None else [Reader(self.sites, stop=False)]

    def attending(self, pass_: Pass) -> Sequence[Site]:
        """The sites whose maps are read."""
        return self.sites if self.readers else ()

    def attend(self, call: Call) -> Tensor:
        """Read a map."""
        return self.readers[0].read(call)

    def after(self, pass_: Pass, output: Any) -> Any:
        """Keep what was read."""
        self.seen.steps += [reader.maps().detach().cpu() for reader in self.readers]
        return output


@contextmanager
def capture(pipeline: Any, layers: Sequence[str | int]) -> Iterator[Seen]:
    """See what words are attended from in the runs of a pipeline inside.

    Args:
        pipeline: A diffusers pipeline.
        layers: Cross- or joint attention of one resolution, as in `choose`; e.g. ``("mid",)``.

    Raises:
        TypeError: It is no pipeline with a known denoiser.
        ValueError: A layer doesn't exist or sees no text, or the denoiser is compiled.
    """
    denoisers = find_denoisers(pipeline)
    if not denoisers or pipeline in denoisers.values():
        raise TypeError(f"{type(pipeline).__name__} is no diffusers pipeline")
    denoiser: Any = next(iter(denoisers.values()))
    if is_compiled(denoiser):
        raise ValueError("a compiled denoiser doesn't show its maps; capture before compiling it")
    sites = tuple(choose(find_sites(denoiser), layers, TEXT))
    seen = Seen(sites)
    entry = Entry(_Capture(sites, seen=seen))
    seat = known_seat(denoiser) or seat_of(denoiser, None, fork=True)
    try:
        seat.push(entry, pipeline)
        yield seen
    finally:
        seat.pop(entry)
    entry.refuse_doubt()
