"""In 16 bits, what rounding made is told from an error of the same size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
