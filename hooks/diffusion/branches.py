"""The branches beside a pass: what they add to the output that a pipeline gets back.

With eps the denoiser's output, every branch of guidance that the pipeline gets back is eps + delta,
where delta sums what each branch's `combine` differs by from its rows' own prediction. For guidance
away from a perturbed branch that is

    delta = sum over guidances of  s (eps_cond - eps_perturbed)

so that a pipeline's own ``uncond + g (cond - uncond)`` becomes that plus delta for every g, and
``cond + delta`` without classifier-free guidance. This is linear in the prediction, whatever it
predicts: the formula of diffusers' PAG pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.fork import Fork, Kept
from regaze.hooks.diffusion.guiders import refuse_uneven
from regaze.hooks.diffusion.passes import Pass
from regaze.hooks.diffusion.per_thread import PerThread
from regaze.hooks.diffusion.predictions import each, prediction_of, tiled, with_prediction
from regaze.hooks.diffusion.rows import call_of_rows
from regaze.hooks.diffusion.works import Branch, Work

Branches = Sequence[tuple[Entry, Branch]]
"""The branches of a pass, with what counts for them."""
Forward = Callable[..., Any]
"""A function that runs the denoiser on another call beside a pass."""


def has_branches(work: Work) -> bool:
    """True if a work asks for further runs beside a pass."""
    return type(work).branches is not Work.branches


def fork_of(branch: Branch, pass_: Pass) -> Fork:
    """What a branch that forks from a pass needs kept of it: its blocks, and its rows."""
    rows = branch.chosen(pass_)
    return frozenset(site.block for site in branch.sites), (rows.start, rows.stop)


def with_branches(
    pass_: Pass,
    branches: Branches,
    kept: Kept | None,
    output: Any,
    thread: PerThread,
    forward: Forward,
) -> Any:
    """The output of a pass with what branches add to it.

    Args:
        pass_: The pass.
        branches: The branches beside it.
        kept: What was kept of the pass for those that fork from it.
        output: What the denoiser returned.
        thread: The state of the thread that runs it.
        forward: Runs a branch: ``forward(call, editors, kept, skipped, instead)``.

    Raises:
        RuntimeError: The conditional call, whose delta an unconditional one shares, wasn't the
            call before it.
    """
    prediction = prediction_of(output)
    now = None if pass_.running is None else (pass_.running.run, pass_.running.step)
    if pass_.rows.cond is None:
        held, thread.delta = thread.delta, None
        if held is None or held[0] != now or len(held[1]) != len(prediction):
            raise RuntimeError(
                "the unconditional branch ran before the conditional one, whose guidance it "
                "shares; this order of calls isn't supported"
            )
        delta = held[1]
    else:
        refuse_uneven(pass_.running, prediction)
        deltas = [_delta(pass_, entry, branch, kept, prediction, forward)
                  for entry, branch in branches]  # fmt: skip
        delta = deltas[0]
        for more in deltas[1:]:
            delta = each(torch.add, delta, more)
        thread.delta = (now, delta) if pass_.rows.split else None
    return with_prediction(output, each(torch.add, prediction, tiled(delta, prediction)))


def _delta(
    pass_: Pass,
    entry: Entry,
    branch: Branch,
    kept: Kept | None,
    prediction: Any,
    forward: Forward,
) -> Any:
    """The difference of a branch's combination from its rows' own prediction."""
    rows = branch.chosen(pass_)
    call = call_of_rows(pass_.call, rows, pass_.rows.batch, pass_.family)
    if branch.inputs is not None:
        call = branch.inputs(dict(call), pass_)
    editors = {site: [partial(entry.attend, work)] for work in branch.works for site in work.sites}
    if kept is not None and kept.broken:
        entry.tally.note = f"whole extra passes: {kept.broken}"
    if kept is None or kept.broken or branch.inputs is not None:
        output = forward(call, editors, (), branch.skipped, branch.instead)
    else:
        fork = fork_of(branch, pass_)
        with kept.replaying(fork):
            output = forward(call, editors, kept.skips(fork), branch.skipped, branch.instead)
    for site in branch.sites:
        if branch.instead or site.block in branch.skipped:
            entry.tally.count(site.name)
    entry.tally.begin()

    def differs(main: Tensor, beside: Tensor) -> Tensor:
        return branch.combine(main, beside, pass_) - main

    return each(differs, prediction[rows], prediction_of(output))
