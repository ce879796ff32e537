"""verify: prove on the user's own model and weights that each method does what its formula says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from regaze.evals.verify.certificate import Certificate, Line
from regaze.evals.verify.checks import check_method, check_plain
from regaze.evals.verify.language import Language
from regaze.evals.verify.pipelines import Pipeline
from regaze.evals.verify.plain import Plain
from regaze.evals.verify.subject import Subject
from regaze.hooks.checks import shown
from regaze.hooks.diffusion.host import find_denoisers
from regaze.interventions import Intervention

_PACKAGES = ("regaze", "torch", "transformers", "diffusers")


def verify(
    target: Any,
    *specs: Intervention | Sequence[Intervention],
    processor: Any = None,
    call: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Certificate:
    """Prove on a model that interventions do what they promise, in seconds.

    The plain model, the attached one and the literal form (attention maps built in full and edited
    as the formula reads) run on the same short inputs; what differs is measured.

    Args:
        target: A transformers vision-language model or a pipeline that holds one; a diffusers
            pipeline. Nothing may be attached to it.
        *specs: Specs to verify, one after the other; a list of several is verified together.
        processor: The vision-language model's processor, which then makes the prompts.
        call: Diffusers only: arguments of the pipeline's call, beside or instead of those that
            regaze chooses (a prompt, two steps, a small size).
        identity: Facts that tell this model from any other, to be kept in the certificate.
        progress: Told what is checked next.

    Returns:
        The certificate: a line per promise and method. `Certificate.passed` sums it up.

    Raises:
        TypeError: The target is neither, or what is to be verified is no spec.
        ValueError: No method is named, one isn't for this kind of model or can't be attached to
            any, or the model can't be asked.
    """
    start = time.perf_counter()
    for one in specs:
        if not isinstance(one, Intervention) and not (
            isinstance(one, Sequence) and all(isinstance(each, Intervention) for each in one)
        ):
            raise TypeError(
                f"verify takes specs such as VHR(alpha=2) or lists of them, got {shown(one)}"
            )
    stacks = [(one,) if isinstance(one, Intervention) else tuple(one) for one in specs]
    if not stacks or not all(stacks):
        raise ValueError("there is nothing to verify: name methods, such as VAR()")
    tell = progress or (lambda text: None)
    for spec in (spec for stack in stacks for spec in stack):
        if spec.stage != "attention":
            raise ValueError(
                f"{spec.name} edits no attention (it changes what the model is shown), so there is "
                "nothing to verify"
            )
    tell("the plain model")
    denoisers = find_denoisers(target)
    wanted = "vision-language models" if denoisers is None else "diffusers pipelines"
    for spec in (spec for stack in stacks for spec in stack):
        if spec.acts_on != wanted:
            raise ValueError(f"{spec.label} acts on {spec.acts_on}, not on {wanted}")
    lines: list[Line] = []
    subject = _subject(target, processor, stacks[0], call)
    plain = Plain(subject)
    lines += check_plain(subject, plain)
    for number, stack in enumerate(stacks):
        if number and denoisers is not None:  # Each method paints its own way.
            try:
                subject = _subject(target, processor, stack, call)
                plain = Plain(subject)
            except RuntimeError as error:
                label = "+".join(spec.label for spec in stack)
                detail = f"the plain model runs no more after what went before: {error}"
                lines.append(Line(label, "fired", "failed", detail))
                continue
        lines += check_method(subject, plain, stack, tell)
    return Certificate(
        model={**subject.about(), **({"identity": dict(identity)} if identity else {})},
        inputs=subject.inputs,
        lines=tuple(lines),
        versions={name: version(name) for name in _PACKAGES},
        seconds=time.perf_counter() - start,
    )


def _subject(
    target: Any,
    processor: Any,
    stack: Sequence[Intervention],
    call: Mapping[str, Any] | None,
) -> Subject:
    if find_denoisers(target) is None:
        return Language(target, processor)
    return Pipeline(target, stack, call or {})
