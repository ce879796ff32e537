"""attach: put interventions on a model, and take them off again without a trace."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from regaze.hooks.attachment import Attachment, NothingAttached
from regaze.hooks.checking import check_edits
from regaze.hooks.checks import shown
from regaze.hooks.edits import Edit, as_works
from regaze.hooks.host import Host, Unknown, find_host
from regaze.hooks.placed import Placed
from regaze.hooks.reading import Reader
from regaze.hooks.report import Report
from regaze.hooks.seat import Seat
from regaze.hooks.specs import Spec
from regaze.hooks.stack import Stack
from regaze.hooks.targets import refuse_wrapper, split_target
from regaze.hooks.tokens import Spans, check_spans
from regaze.hooks.vision import vision_seat

__all__ = ["Attachment", "ModelAttachment", "attach", "seat_of"]

_SEATS: MutableMapping[nn.Module, Seat] = weakref.WeakKeyDictionary()


class ModelAttachment(Attachment):
    """Interventions on a language model, until `detach` or the end of the ``with`` block."""

    def __init__(
        self,
        seat: Seat,
        specs: Sequence[Spec[Host, Edit | Sequence[Edit]]],
        placed: Sequence[Placed],
    ) -> None:
        super().__init__(specs)
        self._seat = seat
        self._placed = list(placed)

    def detach(self) -> None:
        """Take the interventions off; what others attached stays.

        A second call takes off nothing else; it finishes what an interrupt left undone.
        """
        for placed in reversed(self._placed):
            placed.take_off()

    def report(self) -> Report:
        """Report what fired, where, how often and how strongly, since attachment."""
        pairs = zip(self.specs, self._placed, strict=True)
        return Report(tuple(placed.report(spec.label) for spec, placed in pairs))

    def partial_prompt(self) -> AbstractContextManager[None]:
        """Forward passes of this thread inside are parts of a prompt that goes on.

        Their last row isn't the prompt's last. Needed when a prompt is fed in parts, or a shared
        prefix is encoded first; without it the end of every multi-token block counts as the end of
        a prompt. (``generate(prefill_chunk_size=...)`` says so itself.)
        """
        return self._seat.partial()


def attach(
    target: Any,
    *interventions: Spec[Any, Any],
    processor: Any = None,
    spans: Sequence[Spans] | Spans | None = None,
    cond_rows: slice | None = None,
    fork: bool = True,
    unknown: Unknown = "raise",
) -> Attachment:
    """Attach interventions to a model or pipeline that is already loaded.

    They act in the order given; none at all is the baseline of a comparison, on models too that no
    intervention can act on. A second `attach` adds to the first. Nothing is replaced in the
    model but the name of its attention function, and `Attachment.detach` restores that exactly.

    Args:
        target: A transformers vision-language model or a pipeline that holds one; a diffusers
            pipeline, or its U-Net or transformer alone.
        *interventions: Specs, e.g. ``VAR()`` or ``parse("vhr:alpha=2")``.
        processor: The model's processor. Not needed by most; tells row-end and tile tokens of
            Mistral3, Idefics3 and SmolVLM from text.
        spans: Overrides what is found from token ids: ``{"image": [(start, end), ...]}`` in
            columns of the padded batch, for all rows or one mapping per row.
        cond_rows: Diffusers only: which rows of a denoiser's batch are conditional. Needed for a
            bare denoiser whose batch holds both branches (all rows are taken otherwise), and for
            pipelines that don't say.
        fork: Diffusers only: False runs whole extra passes for perturbed branches.
        unknown: Policy for a model type that isn't known: "raise", or "check" on the spot that an
            edit is exact there. Of a denoiser the first pass of each shape shows what PAG, SEG and
            SoftPAG need to know, or raises.

    Returns:
        A handle, usable as a context manager.

    Raises:
        TypeError: The target isn't a model that can be attached to, or an intervention is no spec.
        ValueError: An intervention can't act on this model (the message says why and what can),
            or contradicts what is attached already.
    """
    # Here, because it builds on this module; it doesn't load diffusers.
    from regaze.hooks.diffusion.attach import attach_denoisers
    from regaze.hooks.diffusion.host import find_denoisers

    refuse_wrapper(target)
    denoisers = find_denoisers(target)
    wanted = "vision-language models" if denoisers is None else "diffusers pipelines"
    if denoisers is None:
        split_target(target, processor)
    for one in interventions:
        is_spec = all(hasattr(one, name) for name in ("resolve", "bind", "acts_on"))
        if not is_spec or isinstance(one, type):
            several = "; several come one by one: attach(model, *specs)"
            raise TypeError(
                "attach takes specs such as VHR(alpha=2) or parse('vhr:alpha=2'), got "
                f"{shown(one)}{several if isinstance(one, list | tuple) else ''}"
            )
        if one.acts_on != wanted:
            if denoisers is None and not hasattr(target, "config"):
                raise ValueError(
                    f"{one.label} acts on {one.acts_on}, and a {type(target).__name__} is neither "
                    "a pipeline nor a denoiser: attach to the pipeline, or its U-Net or transformer"
                )
            raise ValueError(
                f"{one.label} acts on {one.acts_on}, and this is one of the {wanted} "
                f"({type(target).__name__}); `regaze list` names the methods for it"
            )
    if cond_rows is not None and not isinstance(cond_rows, slice):
        raise TypeError(f"cond_rows must be a slice such as slice(2, 4), got {shown(cond_rows)}")
    if spans is not None:
        check_spans(spans)
    if denoisers is not None:
        if processor is not None or spans is not None:
            raise ValueError("processor and spans are for vision-language models")
        return attach_denoisers(
            target, denoisers, interventions, cond_rows=cond_rows, fork=fork, unknown=unknown
        )
    if cond_rows is not None or not fork:
        raise ValueError("cond_rows and fork are for diffusers pipelines")
    model, processor = split_target(target, processor)
    if not interventions:
        # Parts of a prompt are of concern to what others attached.
        found = (_SEATS.get(module) for module in model.modules())
        busy = next((one for one in found if one is not None and one.entries), None)
        return NothingAttached() if busy is None else ModelAttachment(busy, (), ())
    host = find_host(model, processor, unknown=unknown, spans=spans is not None)
    if not host.known:
        check_edits(host)
    specs = [one.resolve(host) for one in interventions]
    bound = [as_works(spec.bind(host), spec.label) for spec in specs]
    seat = seat_of(host, spans)
    seats: dict[str, Stack] = {"text": seat}
    if any(work.tower == "vision" for works in bound for work in works):
        seats["vision"] = vision_seat(host)
    placed = [Placed([(work, seats[work.tower]) for work in works]) for works in bound]
    attachment = ModelAttachment(seat, specs, placed)
    try:
        for method in placed:
            method.put_on()
        return attachment
    except BaseException:
        attachment.detach()
        raise


def seat_of(host: Host, spans: Sequence[Spans] | Spans | None = None) -> Seat:
    """The one seat of a text tower, made on first use.

    Raises:
        ValueError: It has other ``spans`` or another ``processor``.
    """
    seat = _SEATS.get(host.tower)
    if seat is None or not seat.busy():
        if seat is not None:
            seat.uninstall()  # An interrupt may have kept it from finishing.
        seat = _SEATS[host.tower] = Seat(host, Reader(host, spans))
        return seat
    reader = seat.reader
    if spans is not None and spans != reader.spans:
        raise _differs("spans")
    if host.processor is not None and not reader.agrees(host):
        raise _differs("row-end and tile tokens, because of another processor")
    return seat


def _differs(what: str) -> ValueError:
    return ValueError(
        f"this model already has interventions attached with other {what}; attach them all in one "
        "call, or detach first"
    )
