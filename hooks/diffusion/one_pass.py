"""One forward pass of a denoiser, with the works that are attached to it.

Branches run beside the main pass (`regaze.hooks.diffusion.branches`).

A main edit acts in every pass, branches included: guidance leads away from what the edited model
would predict. Where both are on a layer, the branch's edit stands in the main one's place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from regaze.hooks.calls import Calls
from regaze.hooks.diffusion import fork as forks
from regaze.hooks.diffusion import kernel
from regaze.hooks.diffusion.begun import work_of
from regaze.hooks.diffusion.branches import Branches, fork_of, with_branches
from regaze.hooks.diffusion.conditional import find_rows
from regaze.hooks.diffusion.containers import copy_containers
from regaze.hooks.diffusion.eager import eagerly
from regaze.hooks.diffusion.entries import Entry
from regaze.hooks.diffusion.families import family_of
from regaze.hooks.diffusion.fork import Instead, Kept, is_compiled, why_not
from regaze.hooks.diffusion.host import inner
from regaze.hooks.diffusion.passes import Editors, Pass, ended
from regaze.hooks.diffusion.per_thread import PerThread
from regaze.hooks.diffusion.predictions import prediction_of, trimmed, with_sample
from regaze.hooks.diffusion.rows import Rows, call_by_name
from regaze.hooks.diffusion.running import running
from regaze.hooks.diffusion.sites import Layout, Site, read_layout
from regaze.hooks.diffusion.works import Work, refuse_shuffled
from regaze.hooks.others import parts
from regaze.hooks.replaced import keeping_nothing

_NOTHING: Mapping[str, Any] = {}

Live = Sequence[tuple[Entry, Work]]
"""Works that act in a pass, with what counts for them."""


class Surroundings(Protocol):
    """The part of a seat that its passes use."""

    cond_rows: slice | None
    fork: bool

    @property
    def attached(self) -> Any:
        """The pipeline that works were attached to, while it exists."""

    def thread(self) -> PerThread:
        """The state that this thread keeps from pass to pass."""

    def calls(self, owner: Calls, compiled: bool) -> Calls:
        """The `Calls` that run code around the modules of a pass."""


class OnePass:
    """One forward pass, with what is attached to the denoiser."""

    def __init__(
        self, seat: Surroundings, module: nn.Module, entries: Sequence[Entry], owner: Calls
    ) -> None:
        self._seat, self._module, self._entries, self._owner = seat, module, entries, owner
        self._denoiser = inner(module)
        self._live: Live = ()
        self._hooked = True  # Until it is seen that others' hooks change nothing.

    def __call__(self, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run the denoiser; ``run`` calls it."""
        pass_ = self._begin(args, kwargs)
        if not self._live:
            return run(*args, **kwargs)
        pass_.forward = partial(self._forward, pass_)
        try:
            output = self._run(pass_, run, args, kwargs)
            outside, acted = self._seat.thread().outside, [entry for entry, _ in self._live]
            outside.saw(prediction_of(output), acted)
            return output
        finally:
            pass_.forward = ended  # It knows the pass, which would hold its tensors in a circle.

    def _run(self, pass_: Pass, run: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        for _, work in self._live:
            work.before(pass_)
        if pass_.latents is not None:
            pass_.latents.finish()
            if pass_.latents.sample is not None:
                pass_.call[pass_.family.sample] = pass_.latents.sample
                args, kwargs = with_sample(pass_, args, kwargs)
        branches = [(e, branch) for e, work in self._live for branch in work.branches(pass_)]
        kept = self._kept(pass_, branches)
        if (call := self._arguments(pass_.call, pass_)) is not pass_.call:
            pass_.layout = self._layout(pass_, call, pass_.rows.branches)
            args, kwargs = (), copy_containers(call)
        with ExitStack() as stack:
            stack.enter_context(self._editing(pass_))
            stack.enter_context(self._blocks(pass_))
            if kept is not None:
                stack.enter_context(kept.recording())
            output = self._looked_at(run(*args, **kwargs), args, kwargs)
        output = trimmed(output, pass_.rows.batch)
        for entry, work in self._live:
            if work.edits:
                entry.tally.begin()
        if branches:
            output = with_branches(
                pass_, branches, kept, output, self._seat.thread(), partial(self._forward, pass_)
            )
        for _, work in self._live:
            output = work.after(pass_, output)
        return output

    def _looked_at(self, output: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The output, once it is known whether others' hooks are a part of the denoiser."""
        thread = self._seat.thread()
        inside, thread.inside = thread.inside, None
        if inside is not None:
            call = call_by_name(self._denoiser, args, kwargs)
            self._hooked = inside.is_changed(call, output)
        return output

    def _arguments(self, call: dict[str, Any], pass_: Pass) -> dict[str, Any]:
        """The denoiser's arguments, as the works that act in a pass make them."""
        for _, work in self._live:
            call = work.arguments(call, pass_)
        return call

    @contextmanager
    def _blocks(
        self, pass_: Pass, skipped: Sequence[str] = (), more: Mapping[str, Instead] = _NOTHING
    ) -> Iterator[None]:
        """Let works run in the place of blocks of the pass inside, of which some are left out."""
        found = {**dict.fromkeys(skipped, forks.skipping(pass_.family.returns)), **more}
        for _, work in self._live:
            found |= {n: one for n, one in work.blocks(pass_).items() if n not in skipped}
        if not found:
            yield
            return
        forks.watch(self._seat.calls(self._owner, pass_.compiled), self._denoiser, found)
        with forks.instead(self._denoiser, found):
            yield

    def _begin(self, args: Any, kwargs: dict[str, Any]) -> Pass:
        """Begin the pass, and the works that act in it."""
        family, seat = family_of(self._denoiser), self._seat
        call = copy_containers(call_by_name(self._denoiser, args, kwargs))
        found = running(self._module)
        batch = len(call[family.sample])
        pass_ = Pass(
            self._denoiser, family, call, Rows(batch, None, None), Layout(None, 0, False), found
        )
        live = [entry for entry in self._entries if entry.work.acts(pass_)]
        if not live:
            return pass_
        _refuse_checkpoints(self._denoiser)
        refuse_shuffled([entry.work for entry in live])
        pass_.compiled = any(is_compiled(part) for part in parts(self._module))
        outside = seat.thread().outside
        pass_.rows = find_rows(family, call, found, seat.attached, seat.cond_rows, outside)
        pass_.layout = self._layout(pass_, call, pass_.rows.branches)
        if any(entry.work.needs_latents for entry in live):
            pass_.latents = seat.thread().latents.begin(pass_)
        self._live = [(entry, work_of(entry, pass_)) for entry in live]
        return pass_

    def _layout(self, pass_: Pass, call: dict[str, Any], branches: int) -> Layout:
        images = 1 if pass_.running is None else pass_.running.images
        return replace(read_layout(self._denoiser, call), branches=branches, images=images)

    # -- its own branches ----------------------------------------------------------------------

    @contextmanager
    def _editing(self, pass_: Pass) -> Iterator[None]:
        """Edit the pass inside by the works that act in it."""
        editors: dict[Site, list[Any]] = {}
        for entry, work in self._live:
            for site in work.attending(pass_):
                editors.setdefault(site, []).append(partial(entry.attend, work))
                if pass_.compiled and work.edits:
                    entry.tally.note = "the denoiser runs uncompiled in these steps"
        if not editors:
            yield
            return
        with self._applied(pass_, editors):
            yield

    @contextmanager
    def _applied(self, pass_: Pass, editors: Editors) -> Iterator[None]:
        calls = self._seat.calls(self._owner, pass_.compiled)
        # Compiled code doesn't see what runs around the calls of its modules.
        with eagerly(self._owner) if pass_.compiled else nullcontext():
            edits = kernel.Edits(self._denoiser, editors, pass_.layout, calls, pass_)
            with edits.applied():
                yield

    def _forward(
        self,
        pass_: Pass,
        call: dict[str, Any],
        editors: Editors,
        kept: Collection[str] = (),
        skipped: Sequence[str] = (),
        instead: Mapping[str, Callable[[Pass], Instead]] = _NOTHING,
    ) -> Any:
        """Run the denoiser on another call, with the main edits where no others are.

        Args:
            pass_: The pass that it runs beside.
            call: Arguments of that call.
            editors: Edits that stand in the main ones' place.
            kept: Blocks that hand back what was kept of them.
            skipped: Blocks that are left out.
            instead: Code to run in the place of modules.
        """
        batch = len(call[pass_.family.sample])
        beside = replace(
            pass_, call=call, rows=Rows(batch, slice(0, batch), None), main=pass_, latents=None,
            layout=self._layout(pass_, call, 1), notes={},
        )  # fmt: skip
        if (wider := self._arguments(call, beside)) is not call:
            beside.layout, call = self._layout(beside, wider, 1), wider
        chains: dict[Site, Sequence[Any]] = {
            site: [partial(entry.attend, work)]
            for entry, work in self._live
            if work.edits
            for site in work.attending(beside)
            if site.block not in kept and site.block not in skipped
        }
        made = {name: make(beside) for name, make in instead.items()}
        with (
            keeping_nothing(self._denoiser),
            self._applied(beside, {**chains, **editors}),
            self._blocks(beside, skipped, made),
        ):
            # Neither compiled nor with what is attached.
            run = self._module._call_impl if self._hooked else self._denoiser.forward
            return trimmed(run(**copy_containers(call)), batch)

    # -- what branches need of it --------------------------------------------------------------

    def _kept(self, pass_: Pass, branches: Branches) -> Kept | None:
        """The keeper of outputs that branches need of the pass; None if they need none."""
        if pass_.rows.cond is None or not branches:
            return None
        reason = why_not(self._module, pass_.call, pass_.family)
        reason = reason if self._seat.fork else "fork=False"
        if any(work.reads_more for _, work in self._live):
            reason = reason or "another intervention adds to what the denoiser is called with"
        wanted = []
        for entry, branch in branches:
            own = "its inputs are its own" if branch.inputs is not None else reason
            note = f"whole extra passes: {own}" if own else "forks at its first block"
            entry.tally.note = "; ".join(filter(None, (note, pass_.rows.told)))
            if own is None:
                wanted.append(fork_of(branch, pass_))
        if not wanted:
            return None
        forks.watch(self._seat.calls(self._owner, pass_.compiled), self._denoiser)
        return Kept(self._denoiser, pass_.family, wanted, pass_.rows.batch)


def _refuse_checkpoints(denoiser: Any) -> None:
    """Check that no block of a pass will run anew in the backward pass."""
    if torch.is_grad_enabled() and getattr(denoiser, "is_gradient_checkpointing", False):
        raise ValueError(
            "gradient checkpointing runs blocks anew in the backward pass, outside of what is "
            "attached, so gradients would be wrong: call disable_gradient_checkpointing(), or run "
            "under torch.no_grad()"
        )
