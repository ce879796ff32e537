"""Every method has a row in the table, and every row is held to every promise or says why not."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from methods import METHODS, PROMISES, Method
from scenes import SCENES

from regaze.interventions import names

TESTS = Path(__file__).parent
EDITS, SCORES = "interventions/{}", "interventions/test_contrasts.py::{}"
PIPELINES = "interventions/diffusion/{}"
HELD: dict[str, tuple[str, ...]] = {
    "undo": (
        "hooks/test_attach.py::test_detaching_leaves_no_trace",
        SCORES.format("test_detaching_leaves_no_trace"),
        PIPELINES.format("test_promises.py::test_detaching_restores_the_pipeline"),
    ),
    "idle": (
        EDITS.format("test_no_ops.py::test_strength_zero_changes_nothing"),
        SCORES.format("test_strength_zero_changes_nothing"),
        PIPELINES.format("test_promises.py::test_strength_zero_changes_nothing"),
    ),
    "literal": (
        EDITS.format("test_exactness.py::test_fused_edits_equal_edited_maps"),
        SCORES.format("test_scores_are_the_formula_s"),
        PIPELINES.format("test_promises.py::test_it_equals_its_literal_form"),
    ),
    "batch": (
        EDITS.format("test_batches.py::test_a_left_padded_batch_equals_single_samples"),
        SCORES.format("test_a_batch_gives_what_single_samples_give"),
        PIPELINES.format("test_promises.py::test_a_batch_gives_what_single_samples_give"),
    ),
    "half": (
        EDITS.format("test_execution.py::test_autocast_stays_close_to_full_precision"),
        SCORES.format("test_autocast_stays_close_to_full_precision"),
        PIPELINES.format("test_promises.py::test_half_precision"),
    ),
    "threads": (
        "hooks/test_threads.py::test_threads_get_what_they_would_get_alone",
        SCORES.format("test_threads_do_not_see_each_other"),
        PIPELINES.format("test_threads.py::test_threads_do_not_see_each_other"),
    ),
    "json": (
        EDITS.format("test_specs.py::test_a_spec_survives_json"),
        PIPELINES.format("test_promises.py::test_specs_survive_json"),
    ),
}
"""The tests of each promise: of edits, of next-token scores, of pipelines."""


@functools.cache
def module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(
        f"read_{path.replace('/', '_')[:-3]}", TESTS / path
    )
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def rows_of(test: str) -> set[str]:
    """Ids of the rows that a test runs with."""
    path, name = test.split("::")
    found: set[str] = set()
    for mark in getattr(module(path), name).pytestmark:
        for case in mark.args[1] if mark.name == "parametrize" else ():
            for value in getattr(case, "values", (case,)):
                if isinstance(value, Method):
                    found.add(value.id)
                elif isinstance(value, str) and value in METHODS:
                    found.add(value)
                else:
                    found.update(
                        row.id for row in METHODS.values() if not row.scenes and row.acts is value
                    )
    return found


def test_every_method_has_a_row() -> None:
    assert {method.name for method in METHODS.values()} == set(names())


def test_every_row_is_what_it_says() -> None:
    for row in METHODS.values():
        assert not row.like or row.like in METHODS and not METHODS[row.like].like, row.id
        assert set(row.scenes) <= set(SCENES), row.id
        for promise, reason in row.without.items():
            what, _, scene = promise.partition("@")
            assert what in PROMISES and (not scene or scene in row.scenes), row.id
            assert len(reason) > 20, row.id
    assert set(HELD) == set(PROMISES)


@pytest.mark.parametrize("promise", PROMISES)
def test_every_row_is_held_to_every_promise_or_says_why_not(promise: str) -> None:
    held = {row for test in HELD[promise] for row in rows_of(test)}
    rows = METHODS.values()
    assert not [row.id for row in rows if row.id not in held and not row.excused(promise)]
    # A reason that no longer holds has to go.
    assert not [row.id for row in rows if row.id in held and promise in row.without]
