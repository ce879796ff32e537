"""In 16 bits, what rounding made is told from an error of the same size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import regaze
from regaze.evals.asking.models import Loaded, load
from regaze.evals.verify import Certificate, Line
from regaze.evals.verify.language import Language
from regaze.evals.verify.plain import Plain
from regaze.evals.verify.rounding import HALVES, held_in_float32, upcast
from regaze.hooks import Columns, Edit, Host
from regaze.interventions import PAI
from regaze.interventions.base import Preset
from regaze.interventions.lvlm.pai import boost_image

LITERAL = ("prefill", "decode")


@dataclass(frozen=True)
class Wrong(PAI):
    """PAI whose edit is off its formula by a share of the logits.

    Attributes:
        off: The share of the logits.
        halves: Off in 16 bits alone.
        batch: The number of rows from which on it is off.
    """

    name: ClassVar[str] = "wrong"
    summary: ClassVar[str] = "PAI with an error"
    presets: ClassVar[Mapping[str, Preset]] = {}

    off: float = 0.0
    halves: bool = False
    batch: int = 1

    def bind(self, host: Host) -> Edit:
        """Bind an edit that is off."""
        dtype = next(host.tower.parameters()).dtype
        right = self.halves and dtype not in HALVES
        return Off(self, 0.0 if right else self.off)


class Off(Edit):
    """The work of `Wrong`."""

    rows = "last"

    def __init__(self, spec: Wrong, off: float) -> None:
        super().__init__(spec.layers or ())
        self.spec, self.off = spec, off

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        """Boost by a little more or less."""
        off = self.off if len(logits) >= self.spec.batch else 0.0
        return boost_image(logits, columns.image, self.spec.alpha + off)


@pytest.fixture(scope="module")
def halves() -> Loaded:
    return load("sandbox", dtype="bfloat16")


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a tolerance that rounding in bfloat16 exceeds it."""
    tolerances = {torch.float32: 1e-4, torch.bfloat16: 1e-3}
    monkeypatch.setattr(Language, "tolerances", tolerances)


def verified(loaded: Loaded, spec: PAI) -> Certificate:
    return regaze.verify(loaded.model, spec, processor=loaded.processor)


def about(certificate: Certificate) -> list[Line]:
    return [certificate.of(promise) for promise in LITERAL]


def test_rounding_passes_with_the_evidence(halves: Loaded) -> None:
    found = verified(halves, PAI(alpha=2.0))
    for line in about(found):
        assert line.verdict == "passed" and line.difference is not None
        assert line.difference > 1e-3
        assert "; rounding: from float32 attached " in line.detail
        assert "there the two differ by" in line.detail and "(1e-04 allowed)" in line.detail
    # The weights are what they were.
    assert found.of("idle").detail == "bit for bit" and found.of("idle").verdict == "passed"
    assert next(halves.model.parameters()).dtype == torch.bfloat16


def test_an_error_of_the_size_of_rounding_fails(halves: Loaded) -> None:
    right, wrong = (verified(halves, spec) for spec in (PAI(alpha=2.0), Wrong(2.0, off=0.02)))
    for one, other in zip(about(right), about(wrong), strict=True):
        assert one.difference is not None and other.difference is not None
        assert 0.2 < other.difference / one.difference < 2
        assert other.verdict == "failed" and "rounding" not in other.detail
        assert "there the two differ by" in other.detail


def test_an_error_in_16_bits_alone_fails(halves: Loaded) -> None:
    for line in about(verified(halves, Wrong(2.0, off=0.4, halves=True))):
        assert line.verdict == "failed" and "verify in float32" in line.detail


def test_so_it_is_in_a_batch(halves: Loaded) -> None:
    subject = Language(halves.model, halves.processor)
    plain = Plain(subject)

    def held(spec: PAI) -> Line:
        with subject.attach([spec]) as attached:
            specs: list[Any] = list(attached.specs)
        failed = Line(spec.label, "batch", "failed", "differs", 0.02, 0.001)
        (line,) = held_in_float32(subject, plain, specs, [failed])
        return line

    right = held(PAI(alpha=2.0))
    assert right.verdict == "passed" and "from float32 in the batch" in right.detail
    for wrong in (Wrong(2.0, off=0.02, batch=2), Wrong(2.0, off=0.4, halves=True, batch=2)):
        assert held(wrong).verdict == "failed"


def test_a_method_that_moves_less_than_rounding_is_not_settled(halves: Loaded) -> None:
    for line in about(verified(halves, PAI(alpha=1e-4))):
        assert line.verdict == "skipped" and "less than that: verify in float32" in line.detail


class Scripted:
    """A subject of three inputs, whose runs lie as far from 0 as a script says.

    Args:
        apart: Distances of the attached and the literal run in 16 bits, by input.
        left: What is left of the attached run's in float32, by input.
    """

    dtype, what, tolerance, further = torch.bfloat16, "numbers", 1e-3, 2

    def __init__(self, apart: Sequence[tuple[float, float]], left: Sequence[float]) -> None:
        self.apart, self.left = apart, left
        self.number, self.form, self.exact = 0, "", False
        self.asked: list[int] = []

    def run(self, which: int) -> list[dict[str, Tensor]]:
        self.asked.append(self.number)
        found = {"": 1.0, "literal": 0.0, "attached": self.left[self.number]}
        if not self.exact:
            found = dict(zip(("attached", "literal"), self.apart[self.number], strict=True))
        return [{"decode": torch.tensor([found[self.form]])}]

    @contextmanager
    def _with(self, **state: Any) -> Iterator[None]:
        before = {name: getattr(self, name) for name in state}
        vars(self).update(state)
        yield
        vars(self).update(before)

    def attach(self, specs: Any) -> Any:
        return self._with(form="attached")

    def literally(self, forms: Any) -> Any:
        return self._with(form="literal")

    def instead(self, number: int) -> Any:
        return self._with(number=number + 1)

    def in_float32(self) -> Any:
        return self._with(exact=True)


@pytest.mark.parametrize(
    ("apart", "left", "verdict", "said", "asked"),
    [
        (
            [(0.5, 0.2)] * 3,
            [0.1, 0, 0],
            "failed",
            "literal 2.0e-01; there the two differ by 1.0",
            1,
        ),
        ([(0.3, 0.2)] * 3, [0, 1, 1], "passed", "literal 2.0e-01; there", 1),
        ([(0.5, 0.2), (0.1, 0.2), (0.2, 0.3)], [0] * 3, "passed", "2.7e-01, literal 2.3e-01", 3),
        ([(0.5, 0.2)] * 3, [0] * 3, "failed", "5.0e-01, literal 2.0e-01, means of 3 inputs", 3),
        ([(0.5, 0.2), (0.1, 0.2), (0.2, 0.3)], [0, 0, 0.1], "failed", "differ by 1.0e-01", 3),
        ([(0.5, 0.2), (0.1, 0.2), (0.2, 0.3)], [0, float("nan"), 0], "failed", "by nan", 3),
        ([(3.0, 1.0), (1.0, 2.0), (2.0, 3.0)], [0] * 3, "skipped", "moves the numbers by 1.0", 3),
    ],
)
def test_one_input_that_speaks_against_a_method_is_held_beside_others(
    apart: Any, left: Any, verdict: str, said: str, asked: int
) -> None:
    subject: Any = Scripted(apart, left)
    plain: Any = object.__new__(Plain)
    plain.spread = {"decode": 1.0}
    failed = Line("scripted", "decode", "failed", "differs", 0.5, 0.001)
    (line,) = held_in_float32(subject, plain, [PAI()], [failed])
    assert line.verdict == verdict and said in line.detail
    # Two runs in 16 bits and three in float32 each.
    assert sorted(subject.asked) == sorted([*range(asked)] * 5)


@pytest.mark.parametrize(
    ("ruled", "verdict", "said"),
    [
        ((3, 2), "passed", "2.0e-01 and 3 ruled out otherwise, literal 1.5e-01 and 2 "),
        ((0, 9), "passed", "attached 2.0e-01, literal 1.5e-01 and 9 ruled"),
        ((2, 0), "passed", "attached 2.0e-01 and 2 ruled out otherwise, literal 1.5e-01;"),
        ((3, 0), "failed", "attached 2.0e-01 and 3 ruled"),
        ((9, 2), "failed", "and 9 ruled out otherwise, literal 1.5e-01 and 2 ruled"),
    ],
)
@pytest.mark.parametrize("far", [False, True])
def test_what_a_cut_rules_out_otherwise_is_counted_not_measured(
    ruled: tuple[int, int], verdict: str, said: str, far: bool
) -> None:
    class Cut(Scripted):
        further = 0

        def run(self, which: int) -> list[dict[str, Tensor]]:
            value = super().run(which)[0]["decode"].expand(20).clone()
            if not self.exact and self.form:
                value[: dict(zip(("attached", "literal"), ruled, strict=True))[self.form]] = -inf
            return [{"decode": value}]

    subject: Any = Cut([(0.4 if far else 0.2, 0.15)], [0])
    plain: Any = object.__new__(Plain)
    plain.spread = {"decode": 1.0}
    failed = Line("scripted", "decode", "failed", "differs", inf, 0.001)
    (line,) = held_in_float32(subject, plain, [PAI()], [failed])
    assert line.verdict == ("failed" if far else verdict)
    assert said.replace("2.0e-01", "4.0e-01") in line.detail if far else said in line.detail


@pytest.mark.parametrize("with_processor", [True, False])
def test_other_prompts_stand_in_for_the_first(halves: Loaded, with_processor: bool) -> None:
    subject = Language(halves.model, halves.processor if with_processor else None)
    first = subject.run(0)[0]["prefill"]
    seen = [first]
    for number in range(subject.further):
        with subject.instead(number):
            seen.append(subject.run(0)[0]["prefill"])
            with subject.in_float32():
                exact = subject.run(0)[0]["prefill"]
        assert exact.shape == seen[-1].shape and float((exact - seen[-1]).abs().max()) > 0
    ends = {tuple(rows[-1].tolist()) for rows in seen}
    assert len(ends) == 1 + subject.further == 6
    assert torch.equal(seen[1], subject.run(1)[0]["prefill"])
    assert torch.equal(first, subject.run(0)[0]["prefill"])


def test_without_float32_a_failure_stays_one(
    halves: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Language) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Language, "in_float32", refuse)
    for line in about(verified(halves, PAI(alpha=2.0))):
        assert line.verdict == "failed" and line.detail.endswith("but: out of memory")


def test_weights_are_lent_to_float32_and_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).half()
    model[2].weight = model[0].weight
    model.register_buffer("exact", torch.zeros(1))
    before = {name: (one, one.data_ptr()) for name, one in model.state_dict(keep_vars=True).items()}
    with pytest.raises(KeyError), upcast(model):
        assert model[0].weight is model[2].weight
        dtypes = {one.dtype for one in model.state_dict().values()}
        assert dtypes == {torch.float32, torch.int64}
        raise KeyError
    for name, one in model.state_dict(keep_vars=True).items():
        assert one is before[name][0] and one.data_ptr() == before[name][1]
