"""Works that have begun with a run of a pipeline, and what each has to remember of it."""

from __future__ import annotations

from dataclasses import dataclass

from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.text import Words, read_text
from regaze.hooks.diffusion.works import Run, Work


@dataclass
class Begun:
    """A work that has begun with a run.

    Attributes:
        step: The step that it was in last.
        work: The work of this run.
        words: Prompt's embeddings as they were, if the work has looked at its words.
    """

    step: int
    work: Work
    words: Words | None = None


def work_of(entry: Entry, pass_: Pass) -> Work:
    """The work of the run that a pass belongs to; a new one if the run has begun.

    Args:
        entry: The work that is attached.
        pass_: The pass.
    """
    found = pass_.running
    if found is None or type(entry.work).begin is Work.begin:
        return entry.work
    if found.guider is not None:  # Nothing is known of what else a modular pipeline holds.
        return entry.work
    begun: dict[Entry, Begun] = found.run.works
    step = -1 if found.step is None else found.step[0]
    if (known := begun.get(entry)) is not None:
        again = pass_.rows.cond is not None and step == known.step and step >= 0
        if step >= known.step and not again:  # Or it goes through its steps once more (FreeInit).
            known.step = step
            if known.words is not None:
                known.words.refuse_others(pass_)
            return known.work
    samples, steps = pass_.rows.samples, 0 if found.step is None else found.step[1]
    read = read_text(found.pipeline, samples, pass_.layout.n_words)
    run = Run(samples, steps, read, entry.tally, found.pipeline)
    work = entry.work.begin(run)
    begun[entry] = Begun(step, work, Words.of(pass_) if run.looked else None)
    return work
