"""attach, for diffusers: find a pipeline's denoisers and put interventions on them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from torch import nn

from regaze.hooks.attachment import Attachment
from regaze.hooks.calls import Calls
from regaze.hooks.diffusion.checking import propose
from regaze.hooks.diffusion.conditional import refuse_steps
from regaze.hooks.diffusion.conventions import defining
from regaze.hooks.diffusion.entries import Entry, refuse_clashes
from regaze.hooks.diffusion.families import CHECKED, FAMILIES
from regaze.hooks.diffusion.fork import is_compiled
from regaze.hooks.diffusion.host import (
    host_of,
    inner,
    is_pipeline,
    refuse_caches,
    refuse_parallel,
)
from regaze.hooks.diffusion.seat import Seat, known_seat, seat_of
from regaze.hooks.diffusion.works import Guidance
from regaze.hooks.report import Report
from regaze.hooks.specs import Spec


class DenoiserAttachment(Attachment):
    """Interventions on a pipeline's denoisers, until `detach` or the end of the ``with`` block."""

    def __init__(
        self,
        specs: Sequence[Spec[Any, Any]],
        entries: Sequence[Entry],
        seats: Sequence[Seat],
        denoisers: Mapping[str, nn.Module],
    ) -> None:
        super().__init__(specs)
        self._entries, self._seats = tuple(entries), tuple(seats)
        self._parts = {name: weakref.ref(inner(module)) for name, module in denoisers.items()}
        self._calls = Calls()

    def watch(self, pipeline: Any) -> None:
        """Let a pipeline's calls show whether it still has the denoisers, and when they end."""
        self._calls.around(pipeline, self._with_parts)

    def _with_parts(
        self, pipeline: Any, run: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        there = [inner(part) for part in vars(pipeline).values() if part is not None]
        for name, part in self._parts.items():
            if not any(part() is one for one in there):
                raise RuntimeError(
                    f"this pipeline's {name} was replaced while "
                    f"{', '.join(spec.label for spec in self.specs)} was attached to the one "
                    "before, so nothing would act: detach, then attach to the pipeline as it is now"
                )
        try:
            return run(*args, **kwargs)
        finally:
            for seat in self._seats:
                seat.ended()

    def detach(self) -> None:
        """Take these interventions off; a second call finishes what the first one couldn't.

        Raises:
            ValueError: They are off, but acted in a loop of one's own on rows that nothing
                confirmed to be conditional, and no other error is on its way.
        """
        self._calls.release()
        for seat in self._seats:
            for entry in reversed(self._entries):
                seat.pop(entry)
        if sys.exc_info()[0] is None:
            for entry in self._entries:
                entry.refuse_doubt()

    def report(self) -> Report:
        """Report what fired, where, how often and how strongly, since they were attached."""
        pairs = zip(self.specs, self._entries, strict=True)
        return Report(tuple(entry.report(spec.label, self._doubt(entry)) for spec, entry in pairs))

    def _doubt(self, entry: Entry) -> str:
        return next(filter(None, (seat.doubt(entry) for seat in self._seats)), "")

    def partial_prompt(self) -> NoReturn:
        """Refuse: denoisers have no prompts in parts.

        Raises:
            TypeError: Always.
        """
        raise TypeError("partial_prompt is for language models; a pipeline reads whole prompts")


def attach_denoisers(
    target: Any,
    denoisers: Mapping[str, nn.Module],
    interventions: Sequence[Spec[Any, Any]],
    *,
    cond_rows: slice | None = None,
    fork: bool = True,
    unknown: Literal["raise", "check"] = "raise",
) -> DenoiserAttachment:
    """Attach interventions to the denoisers that `find_denoisers` found.

    Args:
        target: The pipeline or denoiser.
        denoisers: Result of `find_denoisers` for the target.
        interventions: Specs, e.g. ``PAG(scale=2)``.
        cond_rows: Conditional rows of a batch; needed by pipelines that don't say, and for a
            denoiser that is called by something else than its pipeline.
        fork: Let branches begin at their first edited layer; False runs them whole.
        unknown: Policy for a class that isn't known: "raise", or "check" it by trying.

    Raises:
        ValueError: An intervention can't act on this model.
    """
    refuse_steps(cond_rows)
    modules = list(denoisers.values())
    for name, module in denoisers.items():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(
                f"this pipeline's {name} is a {type(module).__name__}, which splits the batch, and "
                "with it both branches of guidance, over copies that edits wouldn't reach: attach "
                f"after pipe.{name} = pipe.{name}.module"
            )
    checked = [_checked(module, unknown) for module in modules]
    infos = [host_of(inner(module)) for module in modules]
    for module, info in zip(modules, infos, strict=True):
        if not info.layers:
            raise ValueError(
                f"{info.model} has no layers of self- or joint attention that are known here, so "
                "there is nothing to perturb"
            )
        refuse_caches(inner(module))
        refuse_parallel(inner(module))
    specs = [one.resolve(infos[0]) for one in interventions]
    entries = [Entry(spec.bind(infos[0])) for spec in specs]
    for spec, entry in zip(specs, entries, strict=True):
        if any(checked) and not isinstance(entry.work, Guidance):
            raise ValueError(
                f'{spec.label} needs more of a denoiser than unknown="check" can prove, which is '
                "where the picture's rows are (PAG, SEG, SoftPAG): add its class to "
                "regaze.hooks.diffusion.families.FAMILIES"
            )
    pipeline = target if target not in modules else None
    for spec, entry in zip(specs, entries, strict=True):
        if entry.work.needs_latents and not hasattr(pipeline, "scheduler"):
            raise ValueError(
                f"{spec.label} moves a pipeline's latents, and a {type(target).__name__} alone has "
                "none; attach to the pipeline"
            )
    seats = [seat_of(module, cond_rows, fork) for module in modules]
    for module, seat in zip(modules, seats, strict=True):
        refuse_clashes([*seat.entries, *entries])
        if module._compiled_call_impl is not None and any(
            entry.work.edits and not entry.idle for entry in entries
        ):
            raise ValueError(
                f"this {type(module).__name__} was compiled in place, which hides its layers from "
                "edits; use torch.compile(model) instead, of which edited steps run uncompiled"
            )
    attachment = DenoiserAttachment(specs, entries, seats, denoisers)
    try:
        if is_pipeline(pipeline):
            attachment.watch(pipeline)
        for entry in entries:
            for seat in seats:
                seat.push(entry, pipeline)
        return attachment
    except BaseException:
        attachment.detach()
        raise


def _checked(module: Any, unknown: Literal["raise", "check"]) -> bool:
    """True if a denoiser is of an unknown class that is to be checked."""
    denoiser = inner(module)
    if unknown not in ("raise", "check"):
        raise ValueError(f'unknown must be "raise" or "check", got {unknown!r}')
    if defining(denoiser, "forward") in FAMILIES:
        return False
    if unknown == "check" and is_compiled(module):
        raise ValueError(
            f"this {type(denoiser).__name__} is compiled, and what it is can't be found out by "
            "trying there; attach before torch.compile, or to its ._orig_mod"
        )
    if unknown == "check" and denoiser not in CHECKED:
        propose(denoiser)
    elif unknown == "raise" and known_seat(module) is None:
        CHECKED.pop(denoiser, None)  # Who asked before isn't attached any more.
    return denoiser in CHECKED
