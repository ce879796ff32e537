"""The promises, checked one after the other on a model under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from regaze.evals.verify.certificate import Line, Verdict
from regaze.evals.verify.choices import held_again
from regaze.evals.verify.plain import Plain, at_once, first_line
from regaze.evals.verify.rounding import HALVES, held_in_float32
from regaze.evals.verify.subject import Outputs, Subject
from regaze.hooks import Report
from regaze.hooks.report import SCORES
from regaze.interventions import Intervention

Progress = Callable[[str], None]


def check_plain(subject: Subject, plain: Plain) -> Iterator[Line]:
    """Check that the plain model is what literal forms take it to be."""
    if "steps" in subject.parts:
        return
    try:
        with subject.literally(()):
            want = subject.run(0)[0]
    except (NotImplementedError, RuntimeError) as error:
        yield Line("", "maps", "skipped", f"no explicit maps: {first_line(error)}")
        return
    yield _compared("", "maps", plain.apart(plain.outputs[0][0], want), subject)


def check_method(
    subject: Subject, plain: Plain, specs: Sequence[Intervention], progress: Progress
) -> Iterator[Line]:
    """All promises about one method, or several that act together.

    Args:
        subject: The model, with nothing attached.
        plain: Outputs of the plain model.
        specs: The methods, in the order in which they act.
        progress: Told what is checked next.
    """
    label = "+".join(spec.label for spec in specs)
    specs = [subject.prepared(spec) for spec in specs]
    before = subject.state()
    # Right before the attached model's, so that a busy machine slows both down alike.
    seconds = {name: take() for name, take in subject.timed().items()}
    progress(f"{label}: attached")
    try:
        run = subject.attach(specs)
    except (ValueError, TypeError, NotImplementedError) as error:
        yield Line(label, "fired", "skipped", f"refused on this model: {first_line(error)}")
        return
    resolved: list[Any] = list(run.specs)
    try:
        alone = [subject.run(0)[0], subject.run(1)[0]]
        report = run.report()
    except Exception as error:  # Whatever the engine raises is a finding.
        run.detach()
        refuses = isinstance(error, (ValueError, NotImplementedError))
        verdict: Verdict = "skipped" if refuses else "failed"
        yield Line(label, "fired", verdict, f"raises {type(error).__name__}: {first_line(error)}")
        return
    try:
        progress(f"{label}: cost")
        cost = _cost(subject, seconds, label)
        progress(f"{label}: a batch")
        both = _batch(subject, plain, label, alone)
    finally:
        run.detach()
    progress(f"{label}: detached")
    undo = _undo(subject, plain, label, before)
    progress(f"{label}: literal form")
    lines = [*_against_literal(subject, plain, label, resolved, alone[0], report), both]
    for line in held_in_float32(subject, plain, resolved, lines):
        yield held_again(subject, plain.apart, resolved, line)
    progress(f"{label}: strength zero")
    yield _idle(subject, plain, label, resolved)
    yield undo
    progress(f"{label}: two threads")
    # Last, because what goes wrong between threads may leave anything behind.
    yield _threads(subject, plain, label, specs, alone)
    yield cost


def _against_literal(
    subject: Subject,
    plain: Plain,
    label: str,
    specs: Sequence[Any],
    got: Outputs,
    report: Report,
) -> Iterator[Line]:
    """Check that the method acted, and that its outputs are what the formula says."""
    forms = [spec.literal() for spec in specs]
    missing = [spec.name for spec, form in zip(specs, forms, strict=True) if form is None]
    want: Outputs | None = None
    reason = f"no literal form of {', '.join(missing)}" if missing else ""
    if not missing:
        try:
            with subject.literally(forms):
                want = subject.run(0)[0]
        except (NotImplementedError, RuntimeError) as error:
            reason = first_line(error)
    moved = plain.apart(got, plain.outputs[0][0])
    should = None if want is None else plain.apart(want, plain.outputs[0][0])
    yield _fired(subject, label, report, moved, should)
    for part in subject.parts:
        if want is None:
            yield Line(label, part, "skipped", reason)
            continue
        line = _compared(label, part, plain.apart(got, want, part), subject)
        least = plain.apart(want, plain.outputs[0][0], part)
        if line.verdict == "passed" and 0 < least <= subject.tolerance:
            more = "in float32" if subject.dtype in HALVES else "it with a greater strength"
            detail = (
                f"the method moves the {subject.what} by only {least:.1e}, which a tolerance of "
                f"{subject.tolerance:.0e} can't tell from nothing; verify {more}"
            )
            if not report.fired or all(one.exempt for one in report.interventions):
                detail = "nothing to compare"
            line = Line(label, part, "skipped", detail, line.difference, line.tolerance)
        yield line


def _fired(
    subject: Subject, label: str, report: Report, moved: float, should: float | None
) -> Line:
    """Compare what the report says with what changed."""
    shown = []
    for one in report.interventions:
        acted = [layer for layer in one.layers if layer.effect > 0]
        scores = any(layer.name == SCORES for layer in acted)
        where = f"{len(acted) - scores} of {subject.layers} layers"
        shown.append(f"{where}{' and the scores' if scores else ''}, effect {one.effect:.3f}")
    detail = " + ".join(shown)
    if all(one.exempt for one in report.interventions):
        return Line(label, "fired", "skipped", "off by its own settings")
    if not report.fired:
        if should is not None and should <= subject.tolerance:
            return Line(
                label, "fired", "skipped",
                "never: the method's own conditions hold nowhere in these inputs",
            )  # fmt: skip
        return Line(label, "fired", "failed", f"its report says that it never fired ({detail})")
    if moved == 0:
        return Line(
            label, "fired", "failed",
            f"its report says that it fired ({detail}), but the {subject.what} are the plain ones",
        )  # fmt: skip
    how = f"move by {moved:.2g}" if moved < float("inf") else "move, some to minus infinity"
    return Line(label, "fired", "passed", f"{detail}; {subject.what} {how}")


def _batch(subject: Subject, plain: Plain, label: str, alone: Sequence[Outputs]) -> Line:
    if plain.batch:
        return Line(label, "batch", "skipped", plain.batch)
    try:
        both = subject.run("both")
    except Exception as error:
        return Line(label, "batch", "failed", f"raises {type(error).__name__}: {first_line(error)}")
    apart = max(plain.apart(both[i], alone[i]) for i in (0, 1))
    return _compared(label, "batch", apart, subject)


def _threads(
    subject: Subject,
    plain: Plain,
    label: str,
    specs: Sequence[Intervention],
    alone: Sequence[Outputs],
) -> Line:
    if plain.threads:
        return Line(label, "threads", "skipped", plain.threads)
    before = subject.state()
    with subject.attach(specs):
        found = at_once(subject)
    if isinstance(found, BaseException):
        detail = f"raises {type(found).__name__}: {first_line(found)}"
        return Line(label, "threads", "failed", detail)
    if subject.state() != before:
        return Line(label, "threads", "failed", "something is left in the model afterwards")
    apart = max(plain.apart(one, alone[i]) for i in (0, 1) for one in found[i])
    return _compared(label, "threads", apart, subject)


def _undo(subject: Subject, plain: Plain, label: str, before: dict[str, Any]) -> Line:
    after = subject.state()
    left = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if left:
        where = ", ".join(name or "the model" for name in left[:3])
        return Line(label, "undo", "failed", f"something is left in {where}")
    return _same(subject, plain, label, "undo", subject.run(0)[0])


def _idle(subject: Subject, plain: Plain, label: str, specs: Sequence[Intervention]) -> Line:
    idle = [spec.idle() for spec in specs]
    none = [spec.name for spec, one in zip(specs, idle, strict=True) if one is None]
    if none:
        return Line(label, "idle", "skipped", f"{', '.join(none)} has no strength that could be 0")
    try:
        with subject.attach([one for one in idle if one is not None]):
            found = subject.run(0)[0]
    except Exception as error:
        return Line(label, "idle", "failed", f"raises {type(error).__name__}: {first_line(error)}")
    return _same(subject, plain, label, "idle", found)


def _same(subject: Subject, plain: Plain, label: str, promise: str, found: Outputs) -> Line:
    """A line about outputs that must be the plain ones bit for bit."""
    want = plain.outputs[0][0]
    apart = plain.apart(found, want)
    if all(torch.equal(found[part], want[part]) for part in subject.parts):
        return Line(label, promise, "passed", "bit for bit", 0.0, 0.0)
    if not plain.repeats:
        return Line(
            label, promise, "skipped",
            f"the plain model itself gives other bits each time; they differ by {apart:.1e}",
        )  # fmt: skip
    return Line(label, promise, "failed", f"the {subject.what} differ by {apart:.1e}", apart, 0.0)


def _cost(subject: Subject, plain: Mapping[str, float], label: str) -> Line:
    taken = {name: take() for name, take in subject.timed().items()}
    shown = [f"{name} {taken[name] / plain[name]:.2f}x" for name in taken]
    return Line(label, "cost", "info", ", ".join(shown))


def _compared(label: str, promise: str, apart: float, subject: Subject) -> Line:
    tolerance = subject.tolerance
    verdict: Verdict = "passed" if apart <= tolerance else "failed"  # NaN fails.
    detail = f"differs by {apart:.1e} ({tolerance:.0e} allowed)" if apart else "no difference"
    return Line(label, promise, verdict, detail, apart, tolerance)
