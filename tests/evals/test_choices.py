"""Methods that choose heads, in 16 bits: a choice that rounding made is told from an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import regaze
from regaze.evals.asking.models import Loaded, load
from regaze.evals.verify import Certificate
from regaze.hooks import Edit, Host
from regaze.hooks.passes import Pass
from regaze.interventions import VHR
from regaze.interventions.lvlm.vhr import _VHREdit


@dataclass(frozen=True)
class Rounded(VHR):
    """VHR whose literal form takes another first head, as rounding might have it."""

    name: ClassVar[str] = "rounded"

    def literal_factors(self, seen: Tensor, blind: Tensor) -> Tensor:
        """Swap the first head's factor."""
        return swapped(super().literal_factors(seen, blind), self.alpha)


@dataclass(frozen=True)
class Forgetful(Rounded):
    """The same, and its heads are forgotten once the prompt is read."""

    name: ClassVar[str] = "forgetful"

    def bind(self, host: Host) -> Edit:
        """Forget."""
        return Forgetting(self)


@dataclass(frozen=True)
class Crowded(VHR):
    """VHR that takes another first head in a batch."""

    name: ClassVar[str] = "crowded"

    def bind(self, host: Host) -> Edit:
        """Take it."""
        return Crowding(self)


class Forgetting(_VHREdit):
    """The work of `Forgetful`."""

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass
    ) -> Tensor | None:
        """Scale the prompt alone."""
        return None if null is None else super().scale_heads(layer, out, null, pass_)


class Crowding(_VHREdit):
    """The work of `Crowded`."""

    def scale_heads(
        self, layer: int, out: Tensor, null: Tensor | None, pass_: Pass
    ) -> Tensor | None:
        """Swap the first head's factor in a batch."""
        found = super().scale_heads(layer, out, null, pass_)
        if found is not None and null is not None and len(out) > 1:
            self.factors[layer] = found = swapped(found, self.spec.alpha)
        return found


def swapped(factors: Tensor, alpha: float) -> Tensor:
    """Factors of which the first head's is the other one."""
    first = torch.arange(factors.shape[-1]) == 0
    return torch.where(first, alpha + 1 - factors, factors)


@pytest.fixture(scope="module")
def halves() -> Loaded:
    return load("sandbox", dtype="bfloat16")


def verified(halves: Loaded, spec: Any) -> Certificate:
    return regaze.verify(halves.model, spec, processor=halves.processor)


def test_what_rounding_chose_otherwise_is_no_failure_and_is_said(halves: Loaded) -> None:
    found = verified(halves, Rounded())
    assert not found.failures
    for promise in ("prefill", "decode"):
        line = found.of(promise)
        assert line.verdict == "skipped" and line.difference is not None
        assert "heads otherwise; with the same heads by" in line.detail
        assert "measure in float32" in line.detail
    assert found.of("batch").verdict == "passed"


def test_an_error_stays_one_with_the_same_heads(halves: Loaded) -> None:
    found = verified(halves, Forgetful())
    assert found.of("prefill").verdict == "skipped"
    line = found.of("decode")
    assert line.verdict == "failed" and "so it isn't the choice of heads alone" in line.detail


def test_so_it_is_in_a_batch(halves: Loaded) -> None:
    line = verified(halves, Crowded()).of("batch")
    assert line.verdict == "skipped" and "with the same heads by" in line.detail


def test_in_float32_nothing_is_put_down_to_rounding() -> None:
    found = verified(load("sandbox"), Rounded())
    assert found.of("prefill").verdict == "failed"
    assert "the same heads" not in found.of("prefill").detail
