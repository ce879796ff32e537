"""Published scripts' readings of the same answers, and the scores that come of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from popes import blank, question, values

from regaze.evals.benchmarks.pope import Pope

# Profiles


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'vlmeval'; did you mean vlmevalkit"):
        Pope.from_records([question()], blank, profile="vlmeval")
    task = Pope.from_records([question()], blank)
    with pytest.raises(ValueError, match="unknown POPE profile 'oficial'; did you mean official"):
        replace(task, profile="oficial")


def test_the_profile_decides_on_the_prompt_and_the_length() -> None:
    official = Pope.from_records([question()], blank)
    lmms = Pope.from_records([question()], blank, profile="lmms")
    assert official.items[0].prompt == "Is it?"
    assert lmms.items[0].prompt == "Is it?\nAnswer the question using a single word or phrase."
    assert (official.max_new_tokens, lmms.max_new_tokens) == (10, 128)
    assert Pope.from_records([question()], blank, max_new_tokens=3).max_new_tokens == 3


@pytest.mark.parametrize(
    ("profile", "accuracy"),
    [("official", 1 / 4), ("opera", 2 / 4), ("vcd", 4 / 4), ("icd", 1 / 2), ("lmms", 0 / 4)],
)
def test_the_same_answers_are_read_in_many_ways(profile: str, accuracy: float) -> None:
    records = [
        question(1),
        question(2, label="no"),
        question(3, label="no"),
        question(4, label="no"),
    ]
    answers = ["Oh yes. It is", "I say. No", "A snowboard", "Yes, there is nothing"]
    task = Pope.from_records(records, blank, profile=profile)
    assert values(task, answers)["accuracy"] == accuracy


def test_icd_leaves_what_is_neither_yes_nor_no_out_of_accuracy() -> None:
    records = [question(1), question(2, label="no"), question(3, label="no")]
    task = Pope.from_records(records, blank, profile="icd")
    found = values(task, ["yes", "a dog", "Yes"])
    assert task.counts(task.items[1], "a dog")["other"] == 1
    assert (found["accuracy"], found["recall"], found["yes_ratio"]) == (1 / 2, 1.0, 2 / 3)


def test_vlmevalkit_counts_what_is_neither_yes_nor_no_as_missed() -> None:
    task = Pope.from_records([question(1), question(2)], blank, profile="vlmevalkit")
    assert values(task, ["yes", "yes and no"])["recall"] == 1 / 2


def test_vlmevalkit_removes_no_more_than_32_full_stops() -> None:
    task = Pope.from_records([question(1)], blank, profile="vlmevalkit")
    for dots, said in ((32, 0), (33, 1)):
        assert task.counts(task.items[0], "." * dots + "yes")["other"] == said


def test_lmms_yes_ratio_does_not_depend_on_the_answers() -> None:
    records = [question(1), question(2, label="no")]
    task = Pope.from_records(records, blank, profile="lmms")
    assert {values(task, [a, b])["yes_ratio"] for a in ("yes", "no") for b in ("yes", "no")} == {
        0.5
    }


def test_vcd_takes_yes_and_no_for_right_and_nothing_for_wrong_whatever_the_label() -> None:
    task = Pope.from_records([question(1), question(2, label="no")], blank, profile="vcd")
    assert values(task, ["yes and no", "yes and no"])["accuracy"] == 1.0
    assert values(task, ["", ""])["accuracy"] == 0.0


# Counts and metrics


def test_counts_have_the_same_keys_for_all_answers_and_profiles() -> None:
    task = Pope.from_records([question()], blank)
    keys = {
        tuple(replace(task, profile=profile).counts(task.items[0], text))
        for profile in ("official", "icd", "lmms")
        for text in ("yes", "No.", "")
    }
    assert len(keys) == 1


def test_length_and_emptiness_of_answers_are_counted() -> None:
    task = Pope.from_records([question(1), question(2), question(3)], blank)
    found = values(task, ["Yes, it is.", "", " \n"])
    assert (found["words"], found["empty"]) == (1.0, 2 / 3)


def test_no_yes_at_all_leaves_precision_and_f1_undefined() -> None:
    task = Pope.from_records([question(1), question(2, label="no")], blank)
    found = values(task, ["no", "no"])
    assert np.isnan([found["precision"], found["f1"]]).all()
    assert (found["accuracy"], found["recall"], found["yes_ratio"]) == (0.5, 0.0, 0.0)


def test_metrics_work_elementwise_on_arrays_of_sums() -> None:
    task = Pope.from_records([question(1), question(2, label="no")], blank)
    rows = [task.counts(task.items[0], "yes"), task.counts(task.items[1], "yes")]
    sums = {key: np.array([rows[0][key], rows[1][key]], dtype=float) for key in rows[0]}
    np.testing.assert_array_equal(task.metrics(sums)["precision"], [1.0, 0.0])


def test_every_metric_has_a_direction() -> None:
    task = Pope.from_records([question()], blank)
    assert list(task.directions) == list(values(task, ["yes"]))
