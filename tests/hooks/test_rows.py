"""Long questions are recomputed in parts, which nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import EDITS, MAIN
from tiny import tiny
from torch import Tensor

from regaze.hooks import attach, capture, rows
from regaze.hooks.edits import Edit
from regaze.hooks.tally import Entry


@pytest.mark.parametrize("most", [1, 600, 1200])
@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_rows_in_parts_equal_rows_at_once(
    most: int, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llava", attn_implementation=base)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    results = []
    for limit in (rows.MOST_ELEMENTS, most):
        monkeypatch.setattr(rows, "MOST_ELEMENTS", limit)
        with (
            attach(model.model, *(EDITS[name].acts for name in MAIN)),
            capture(model.model, rows="text") as seen,
            torch.no_grad(),
        ):
            out = model.model(**inputs, output_attentions=base == "eager")
        results.append((out.logits, seen.mass(0), seen.mass(1), *(out.attentions or ())))
    for at_once, in_parts in zip(*results, strict=True):
        # Rounding alone: with all of it in float64 they differ by 2e-14.
        spread = max(1.0, float(at_once.std()))  # Logits spread by 3, weights by less than 1.
        torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-5 * spread)


@pytest.mark.parametrize("name", MAIN)
def test_parts_count_as_one_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llava")
    inputs = ask(model, (LONG, [1]))
    reports = []
    for limit in (rows.MOST_ELEMENTS, 300):
        monkeypatch.setattr(rows, "MOST_ELEMENTS", limit)
        with attach(model.model, EDITS[name].acts) as run, torch.no_grad():
            model.model(**inputs)
        reports.append(run.report().interventions[0])
    at_once, in_parts = reports
    assert [layer.calls for layer in in_parts.layers] == [1] * len(EDITS[name].layers)
    assert [layer.calls for layer in at_once.layers] == [1] * len(EDITS[name].layers)
    assert in_parts.fired


def test_autocast_leaves_recomputed_rows_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits their logits would be coarser than the kernel's."""
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    made = []
    for name in ("row_logits", "mix_values"):
        real: Callable[..., Tensor] = getattr(rows, name)

        def noted(*given: Any, real: Callable[..., Tensor] = real) -> Tensor:
            made.append(real(*given))
            return made[-1]

        monkeypatch.setattr(rows, name, noted)
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, inputs, EDITS["vaf"].acts)
        assert torch.is_autocast_enabled("cpu")
    assert made
    assert {one.dtype for one in made} == {torch.float32}


@pytest.mark.parametrize("count", [*range(1, 20), 50])
def test_a_few_rows_are_measured_and_the_last_among_them(count: int) -> None:
    before = torch.zeros(1, 2, count, 4)
    after = before.clone()
    after[:, :, -1, 0] = 5.0
    entry: Entry[Edit, int] = Entry(Edit([0]))
    rows.measure(entry, 0, before, after, torch.ones(1, count, dtype=torch.bool), logits=True)
    share, change = entry.tally.measured(0)
    measured = round(1 / share)
    assert min(count, 4) <= measured <= min(count, rows.MEASURED_ROWS)
    moved = after[0, 0, -1].softmax(-1)[0] - 0.25
    assert change == pytest.approx(float(moved) / measured)
