"""attach, for diffusers: find a pipeline's denoisers and put interventions on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from regaze.hooks.attach import Attachment
from regaze.hooks.diffusion.host import host_of, inner
from regaze.hooks.diffusion.seat import Seat
from regaze.hooks.diffusion.works import Attend, Entry, LatentEdit, refuse_clashes
from regaze.hooks.report import InterventionReport, Report
from regaze.hooks.specs import Spec


class DenoiserAttachment(Attachment):
    """What acts on a pipeline's denoisers, until `detach` or the end of the ``with`` block."""

    def __init__(
        self, specs: Sequence[Spec[Any, Any]], entries: Sequence[Entry], seats: Sequence[Seat]
    ) -> None:
        self.specs = tuple(specs)
        self._guided = list(entries)
        self._seats = list(seats)
        self._attached = True

    def detach(self) -> None:
        """Take them off. Others stay; a second call does nothing."""
        if self._attached:
            self._attached = False
            for seat in self._seats:
                for entry in reversed(self._guided):
                    seat.pop(entry)

    def report(self) -> Report:
        """What fired, where, how often and how strongly, since they were attached."""
        return Report(
            tuple(
                InterventionReport(
                    spec.label,
                    prompts=0,
                    layers=tuple(entry.layers()),
                    exempt=entry.idle,
                    steps=entry.steps,
                    note=entry.note,
                )
                for spec, entry in zip(self.specs, self._guided, strict=True)
            )
        )

    def partial_prompt(self) -> Any:
        """Denoisers have no prompts in parts."""
        raise TypeError("partial_prompt is for language models; a pipeline reads whole prompts")


def attach_denoisers(
    target: Any,
    denoisers: Mapping[str, nn.Module],
    interventions: Sequence[Spec[Any, Any]],
    *,
    cond_rows: slice | None = None,
    fork: bool = True,
) -> DenoiserAttachment:
    """Attach interventions to the denoisers that `find_denoisers` found.

    Args:
        target: The pipeline or denoiser.
        denoisers: What `find_denoisers` gave for it.
        interventions: Specs, e.g. ``PAG(scale=2)``.
        cond_rows: Which rows of a batch are conditional; needed by pipelines that don't say, and
            for a bare denoiser whose batch holds both branches (all rows otherwise).
        fork: Let perturbed branches begin at their first edited layer; False runs them whole.

    Raises:
        ValueError: An intervention can't act on this model.
    """
    modules = list(denoisers.values())
    infos = [host_of(inner(module)) for module in modules]
    for module, info in zip(modules, infos, strict=True):
        if not info.layers:
            raise ValueError(
                f"{info.model} has no layers of self- or joint attention that are known here, so "
                "there is nothing to perturb"
            )
        if getattr(inner(module), "is_cache_enabled", False):
            raise ValueError(
                f"step caching is on in this {info.model}; it would skip edited layers and mix the "
                "branches up; call disable_cache() first"
            )
    specs = [one.resolve(infos[0]) for one in interventions]
    entries = [Entry(spec.bind(infos[0])) for spec in specs]
    pipeline = target if target not in modules else None
    for spec, entry in zip(specs, entries, strict=True):
        if isinstance(entry.work, LatentEdit) and not hasattr(pipeline, "scheduler"):
            raise ValueError(
                f"{spec.label} moves a pipeline's latents, and a {type(target).__name__} alone has "
                "none; attach to the pipeline"
            )
    seats = [seat_of(module, pipeline, cond_rows, fork) for module in modules]
    for module, seat in zip(modules, seats, strict=True):
        refuse_clashes([*seat.entries, *entries])
        if module._compiled_call_impl is not None and any(
            isinstance(entry.work, Attend) and not entry.idle for entry in entries
        ):
            raise ValueError(
                f"this {type(module).__name__} was compiled in place, which hides its layers from "
                "edits; use torch.compile(model) instead, of which edited steps run uncompiled"
            )
    for entry in entries:
        for seat in seats:
            seat.push(entry)
    return DenoiserAttachment(specs, entries, seats)


def seat_of(module: nn.Module, pipeline: Any, cond_rows: slice | None, fork: bool) -> Seat:
    """The one seat of a denoiser: the one whose hooks it has, or a new one."""
    for hook in module._forward_pre_hooks.values():
        seat = getattr(hook, "__self__", None)
        if isinstance(seat, Seat) and seat.of(module):
            if (seat.cond_rows, seat.fork) != (cond_rows, fork):
                raise ValueError(
                    "this denoiser already has interventions attached with other cond_rows or "
                    "fork; attach them all in one call, or detach first"
                )
            return seat
    return Seat(module, pipeline, cond_rows, fork)
