"""In 16 bits: is a difference rounding, or an error?

The attached model and the literal form both round, and so do a batch and its rows; methods that
rank, cut off or contrast magnify what is rounded otherwise. So both sides are held against the same
weights in float32. If they agree there, and in 16 bits the one is about as near to that as the
other, the edit is right and rounds no worse. A method that chooses (heads by their rank, say) may
choose otherwise on one input and not on the next, so where the first input speaks against it,
several are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from regaze.evals.verify.certificate import Line
from regaze.evals.verify.plain import Plain, first_line
from regaze.evals.verify.subject import Outputs, Subject
from regaze.interventions import Intervention

HALVES = (torch.float16, torch.bfloat16)
FARTHER = 2.0
"""The ratio up to which two roundings count as equal: by chance alone, what lies farthest out of
some thousands of numbers differs that much, and the literal form has more of them in float32."""

# The first input, before those that can stand in for it.
_FIRST = -1

Pairs = Sequence[tuple[Outputs, Outputs]]
"""The attached model's outputs, and what they must equal."""


def held_in_float32(
    subject: Subject,
    plain: Plain,
    specs: Sequence[Intervention],
    lines: Sequence[Line],
) -> Iterator[Line]:
    """Lines, of which those that failed in 16 bits are held once more against float32.

    Args:
        subject: The model, with nothing attached.
        plain: Outputs of the plain model.
        specs: The methods, resolved.
        lines: About the literal form or the batch.

    Yields:
        The lines; where the difference is rounding, passed, or skipped if the method moves less
        than that.
    """
    found: dict[tuple[bool, int], _Found | str] = {}

    def find(batch: bool, number: int) -> _Found | str:
        if (batch, number) not in found:
            found[batch, number] = _find(subject, specs, batch, number)
        return found[batch, number]

    for line in lines:
        batch = line.promise == "batch"
        if line.verdict != "failed" or line.difference is None or subject.dtype not in HALVES:
            yield line
            continue
        inputs = [find(batch, _FIRST)]
        held, farther = _held(subject, plain, line, inputs)
        if farther and not batch:
            inputs += [find(batch, number) for number in range(subject.further)]
            held, _ = _held(subject, plain, line, inputs)
        yield held


@dataclass(frozen=True)
class _Found:
    halves: Pairs
    exact: Pairs
    unmoved: Sequence[Outputs]
    allowed: float


def _find(
    subject: Subject, specs: Sequence[Intervention], batch: bool, number: int
) -> _Found | str:
    """Run both sides in 16 bits and in float32; why not, where that can't be."""
    try:
        with nullcontext() if number == _FIRST else subject.instead(number):
            halves = _pairs(subject, specs, batch)
            with subject.in_float32():
                exact = _pairs(subject, specs, batch)
                unmoved = [subject.run(which)[0] for which in ((0, 1) if batch else (0,))]
                return _Found(halves, exact, unmoved, subject.tolerance)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"float32 would tell rounding from an error, but: {first_line(error)}"


def _pairs(subject: Subject, specs: Sequence[Intervention], batch: bool) -> Pairs:
    with subject.attach(specs):
        alone = subject.run(0)[0]
        if batch:
            return list(zip(subject.run("both"), (alone, subject.run(1)[0]), strict=True))
    with subject.literally([spec.literal() for spec in specs]):
        return [(alone, subject.run(0)[0])]


def _held(
    subject: Subject, plain: Plain, line: Line, inputs: Sequence[_Found | str]
) -> tuple[Line, bool]:
    """The line with what was found, and True if distances alone speak against the method."""
    found: list[_Found] = []
    for one in inputs:
        if isinstance(one, str):
            return _saying(line, one), False
        found.append(one)
    part = None if line.promise == "batch" else line.promise
    halves = [pair for one in found for pair in one.halves]
    exact = [pair for one in found for pair in one.exact]
    wants = [other for _, other in exact]
    mine, others = (_Distance.mean(plain, ones, wants, part) for ones in zip(*halves, strict=True))
    unmoved, gaps = (
        [plain.apart(one, want, part) for one, want in zip(ones, wants, strict=True)]
        for ones in ([each for one in found for each in one.unmoved], [one for one, _ in exact])
    )
    moves, left = fmean(unmoved), max(gaps, key=lambda one: (one != one, one))
    allowed = found[0].allowed
    said = ("in the batch", "alone") if part is None else ("attached", "literal")
    asked = "" if len(found) == 1 else f", means of {len(found)} inputs"
    detail = (
        f"from float32 {said[0]} {mine}, {said[1]} {others}{asked}; there the two differ by "
        f"{left:.1e} ({allowed:.0e} allowed)"
    )
    if not left <= allowed:  # NaN fails.
        return _saying(line, detail), False
    if not mine.near(others):
        # Methods choose: sinks by a threshold, columns by their rank.
        more = "rounding may choose sinks or columns otherwise: verify in float32"
        return _saying(line, f"{detail}; {more}"), True
    if moves <= mine.most:
        more = f"the method moves the {subject.what} by {moves:.1e}, less than that"
        line = replace(line, verdict="skipped")
        return _saying(line, f"{detail}; {more}: verify in float32"), False
    return _saying(replace(line, verdict="passed"), f"rounding: {detail}"), False


@dataclass(frozen=True)
class _Distance:
    """A distance of outputs from others.

    Attributes:
        most: The largest difference of what neither rules out, as a share of the spread.
        ruled: The number of what only one of them rules out, by a cut: minus infinity.
    """

    most: float
    ruled: float

    @classmethod
    def mean(
        cls, plain: Plain, ones: Sequence[Outputs], wants: Sequence[Outputs], part: str | None
    ) -> _Distance:
        most, ruled = [], []
        for one, want in zip(ones, wants, strict=True):
            names = [part] if part else list(plain.spread)
            off = {name: one[name].isneginf() != want[name].isneginf() for name in names}
            kept = {name: one[name].where(~off[name], want[name]) for name in names}
            most.append(plain.apart(kept, want, part))
            ruled.append(sum(int(each.sum()) for each in off.values()))
        return cls(fmean(most), fmean(ruled))

    def near(self, other: _Distance) -> bool:
        """True if this is hardly farther than another distance; NaN isn't."""
        few = max(other.ruled, 1.0)
        return self.most <= FARTHER * other.most and self.ruled <= FARTHER * few

    def __str__(self) -> str:
        cut = f" and {self.ruled:.2g} ruled out otherwise" if self.ruled else ""
        return f"{self.most:.1e}{cut}"


@contextmanager
def upcast(module: nn.Module) -> Iterator[None]:
    """Hold a module's weights in float32 inside; afterwards it has its own again, untouched."""
    tensors = [*module.parameters(), *module.buffers()]
    own: list[tuple[Tensor, Tensor]] = [(one, one.data) for one in tensors if one.dtype in HALVES]
    try:
        for one, data in own:
            one.data = data.float()
        yield
    finally:
        for one, data in own:
            one.data = data


def _saying(line: Line, more: str) -> Line:
    return replace(line, detail=f"{line.detail}; {more}")
