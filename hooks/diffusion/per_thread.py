"""The state that a thread keeps from pass to pass of one denoiser, and its works of each run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.latents import Latents
from regaze.hooks.diffusion.outside import Outside
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.text import Words, read_text
from regaze.hooks.diffusion.works import Run, Work


@dataclass
class Begun:
    """A work that has begun with a run of a pipeline.

    Attributes:
        run: The run's number.
        step: The step that it was in last.
        work: The work of this run.
        words: Prompt's embeddings as they were, if the work has looked at its words.
    """

    run: int
    step: int
    work: Work
    words: Words | None = None


@dataclass
class PerThread:
    """The state that one thread keeps from pass to pass.

    Attributes:
        latents: The latents of its running pipeline.
        begun: Works that have begun with a run, by the ``id`` of their entry.
        delta: What guidance added to the conditional call, and when, for the call of the
            unconditional branch that follows.
        outside: Its last call of a denoiser that no pipeline ran.
    """

    latents: Latents = field(default_factory=Latents)
    begun: dict[int, Begun] = field(default_factory=dict)
    delta: tuple[Any, Any] | None = None
    outside: Outside = field(default_factory=Outside)

    def work_of(self, entry: Entry, pass_: Pass) -> Work:
        """The work of this run of the pipeline; a new one if another run has begun."""
        found = pass_.running
        if found is None or type(entry.work).begin is Work.begin:
            return entry.work
        if found.guider is not None:  # Nothing is known of what else a modular pipeline holds.
            return entry.work
        begun, step = self.begun, -1 if found.step is None else found.step[0]
        if (known := begun.get(id(entry))) is not None:
            again = pass_.rows.cond is not None and step == known.step and step >= 0
            # Where a run ended early, the next one may have its number, and begins at its step.
            if known.run == found.run and step >= known.step and not again:
                known.step = step
                if known.words is not None:
                    known.words.refuse_others(pass_)
                return known.work
        samples, steps = pass_.rows.samples, 0 if found.step is None else found.step[1]
        read = read_text(found.pipeline, samples, pass_.layout.n_words)
        run = Run(samples, steps, read, entry.tally, found.pipeline)
        work = entry.work.begin(run)
        words = Words.of(pass_) if run.looked else None
        begun[id(entry)] = Begun(found.run, step, work, words)
        return work
