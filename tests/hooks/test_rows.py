"""Long questions are recomputed in parts, which nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from asking import LONG, SHORT, ask, logits
from matrix import EDITS, MAIN
from tiny import tiny
from torch import Tensor

from regaze.hooks import attach, capture, rows
from regaze.hooks.edits import Edit
from regaze.hooks.host import Host
from regaze.hooks.passes import Columns, RowPlan
from regaze.hooks.tally import Entry
from regaze.interventions.base import Intervention


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


class Moving(Edit):
    """Halves each weight on the picture and gives what is taken to the text, in two ways."""

    rows = "text"

    def __init__(self) -> None:
        super().__init__([1])
        self.moved = self.biased = 0

    def fork(self) -> Edit:
        return self

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        self.biased += 1
        return self._halve(logits.softmax(-1), columns).log()

    def move_weights(self, layer: int, weights: Tensor, columns: Columns) -> Tensor:
        self.moved += 1
        return self._halve(weights, columns)

    def _halve(self, weights: Tensor, columns: Columns) -> Tensor:
        on_image = (weights * columns.image).sum(-1, keepdim=True)
        on_text = (weights * ~columns.image).sum(-1, keepdim=True)
        return weights * torch.where(columns.image, 0.5, 1 + 0.5 * on_image / on_text)


class Adding(Edit):
    """Adds to the logits of the picture."""

    rows = "text"

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return logits + 0.5 * columns.image


class Weighing(Edit):
    """Zeroes the weights on the picture that were raised before."""

    rows = "text"

    def edit_weights(self, layer: int, weights: Tensor, logits: Tensor, columns: Columns) -> Tensor:
        return weights * (logits > 0)


class Looking(Edit):
    """Keeps the logits that it sees."""

    rows, reads_only = "text", True

    def __init__(self) -> None:
        super().__init__([1])
        self.seen: list[Tensor] = []

    def fork(self) -> Edit:
        return self

    def see_rows(self, layer: int, logits: Tensor, plan: RowPlan, columns: Columns) -> None:
        self.seen.append(logits)


HELD: list[Edit] = []


@dataclass(frozen=True)
class Given(Intervention):
    """One of the edits held, as a method."""

    name: ClassVar[str] = "given"
    number: int

    def check(self) -> None:
        """Nothing to check."""

    def resolve(self, host: Host) -> Given:
        return self

    def bind(self, host: Host) -> Edit:
        return HELD[self.number]


def given(*edits: Edit) -> list[Given]:
    HELD[:] = edits
    return [Given(number) for number in range(len(edits))]


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("before", "behind", "moves"),
    [
        ([], [], True),
        ([Adding([1])], [], True),
        ([Looking()], [Looking()], True),
        ([Weighing([0])], [Weighing([0])], True),  # Of another layer.
        ([], [Adding([1])], False),
        ([Weighing([1])], [], False),
        ([], [Weighing([1])], False),
    ],
)
def test_weights_are_moved_where_no_edit_needs_logits_behind(
    before: list[Edit], behind: list[Edit], moves: bool, base: str
) -> None:
    model = tiny("llava", attn_implementation=base)
    inputs = ask(model, (SHORT, [0]), (LONG, [1]))
    results: list[list[Tensor]] = []
    for edit in (Moving(), Moving()):
        with attach(model.model, *given(*before, edit, *behind)) as run, torch.no_grad():
            if results:  # The same by logits alone.
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(Moving, "move_weights", Edit.move_weights)
                    out = model.model(**inputs, output_attentions=base == "eager")
                    assert not edit.moved
            else:
                out = model.model(**inputs, output_attentions=base == "eager")
                looked = any(isinstance(one, Looking) for one in behind)
                assert (edit.moved, edit.biased) == ((1, int(looked)) if moves else (0, 1))
        effect = run.report().interventions[len(before)].layers[0].effect
        results.append([out.logits, torch.tensor(effect), *(out.attentions or ())])
        results[-1] += [one.seen.pop() for one in (*before, *behind) if isinstance(one, Looking)]
    assert results[0][1] > 0.05
    for moved, biased in zip(*results, strict=True):
        torch.testing.assert_close(moved, biased, rtol=0, atol=2e-5)


def test_looking_at_moved_weights_changes_no_bit() -> None:
    model = tiny("llava")
    inputs = ask(model, (SHORT, [0]))
    alone = logits(model, inputs, *given(Moving()))
    assert torch.equal(logits(model, inputs, *given(Moving(), Looking())), alone)
