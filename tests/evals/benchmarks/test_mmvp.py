from __future__ import annotations

import csv
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.mmvp import Mmvp
from regaze.evals.task import QuestionTask

LABELS = "ABBAABABBA"
SAID = ["A", "(b) short", "The answer is B", "option a", "B. yes"]
SAID += ["", "neither", "A", "an umbrella", "b"]


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(index: int = 1, label: str = "a", **fields: Any) -> dict[str, Any]:
    row = {"Index": index, "Question": "Is it open?", "Options": "(a) Open (b) Half closed"}
    return {**row, "Correct Answer": f"({label})", **fields}


def made(profile: str = "letter") -> Mmvp:
    rows = [record(index, label.lower()) for index, label in enumerate(LABELS, 1)]
    return Mmvp.from_records(rows, blank, profile=profile)


def answers() -> dict[str, str]:
    return {str(index): text for index, text in enumerate(SAID, 1)}


# Scores


def test_letters_and_pairs_count_as_in_lmms_eval() -> None:
    found = sections(made(), answers())["all"]
    assert (found["accuracy"], found["pair_accuracy"]) == (0.4, 0.4)
    assert (found["other"], found["empty"], found["a_ratio"]) == (0.2, 0.1, 0.4)


def test_a_pair_counts_if_both_answers_are_right() -> None:
    rows = [record(index, "ab"[index % 2]) for index in range(1, 5)]
    task = Mmvp.from_records(rows, blank)
    found = sections(task, {"1": "B", "2": "A", "3": "B", "4": "B"})["all"]
    assert (found["accuracy"], found["pair_accuracy"]) == (0.75, 0.5)
    found = sections(task, {"1": "B", "2": "A", "3": "B"})["all"]
    assert (found["accuracy"], found["pair_accuracy"]) == (1.0, 1.0)
    assert isnan(sections(task, {"1": "B"})["all"]["pair_accuracy"])


@pytest.mark.parametrize("released", [True, False])
def test_the_profile_decides_on_the_labels_whichever_the_file_holds(released: bool) -> None:
    topics = {99: "long or short tusks", 100: "long or short tusks", 279: "elderly", 280: "elderly"}
    labels = "abab" if released else "baba"
    rows = [
        record(index, label, Question=f"Is it {topic}?")
        for (index, topic), label in zip(topics.items(), labels, strict=True)
    ]
    task = Mmvp.from_records(rows, blank)
    said = {"99": "B", "100": "A", "279": "B", "280": "A"}
    accuracy = {
        name: sections(task.under(name), said)["all"]["accuracy"]
        for name in ("letter", "letter/original", "vlmevalkit")
    }
    assert accuracy == {"letter": 1.0, "letter/original": 0.0, "vlmevalkit": 0.0}


def test_labels_of_other_questions_are_left_alone() -> None:
    task = Mmvp.from_records([record(99, "a"), record(100, "b")], blank)
    for profile in ("letter", "letter/original"):
        found = sections(task.under(profile), {"99": "A", "100": "B"})
        assert found["all"]["accuracy"] == 1.0


def test_vlmevalkit_reads_the_text_of_an_option_too() -> None:
    task = made()
    found = [
        task.under(p).counts(task.items[1], "It is half closed") for p in ("letter", "vlmevalkit")
    ]
    assert [counts["correct"] for counts in found] == [0, 1]


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, answers())["all"])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("A", "")}) == 1


# Reading


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with (folder / "Questions.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = folder / "MMVP Images"
    images.mkdir(exist_ok=True)
    for row in rows:
        Image.new("L", (2, 2), 10 * int(row["Index"])).save(images / f"{row['Index']}.jpg")
    return folder


def test_the_released_folder_is_read(tmp_path: Path) -> None:
    rows = [
        record(1, "a", Question="Left, or\nright?"),
        record(2, "b", Question="Left, or\nright?"),
    ]
    task = Mmvp.from_files(write(tmp_path, rows))
    assert task.items == Mmvp.from_records(rows, blank).items
    assert [task.load_image(item).getpixel((0, 0))[0] for item in task.items] == [10, 20]  # type: ignore[index]
    same = Mmvp.from_files(tmp_path / "Questions.csv", tmp_path / "MMVP Images")
    assert same.items == task.items
    (tmp_path / "MMVP Images" / "2.jpg").unlink()
    with pytest.raises(OSError, match=str(tmp_path / "MMVP Images" / "2.jpg")):
        task.load_image(task.items[1])


def test_pairs_are_clusters() -> None:
    assert [item.cluster for item in made().items[:4]] == ["pair 1", "pair 1", "pair 2", "pair 2"]


def test_prompts_are_those_of_the_scripts() -> None:
    assert made().items[0].prompt == (
        "Is it open?\nA. Open\nB. Half closed\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert made("vlmevalkit").items[0].prompt == (
        "Question: Is it open?\nOptions:\nA. Open\nB. Half closed\n"
        "Please select the correct answer from the options above. \n"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Options": "Open or closed"}, r"row 1: Options must be '\(a\) \.\.\. \(b\) \.\.\.'"),
        ({"Options": "(a) 1 (b) 2 (c) 3"}, "row 1: Options must be"),
        ({"Correct Answer": "(c)"}, r"row 1: Correct Answer must be \(a\) or \(b\), not '\(c\)'"),
        ({"Index": "two"}, "row 1: Index must be a number from 1, not 'two'"),
        ({"Index": 1}, "row 1: question 1 is already at row 0"),
        ({"Index": 3}, "come in pairs 1 and 2, 3 and 4, ...: 1 has none"),
        ({"Question": None}, "row 1: no MMVP question, it lacks Question"),
    ],
)
def test_odd_rows_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mmvp.from_records([record(), record(2, **fields)], blank)


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "Questions.csv"
    path.write_text("image,caption\na.jpg,A dog.\n")
    with pytest.raises(ValueError, match=rf"{path}:2: no MMVP question, it lacks Index.*has image"):
        Mmvp.from_files(tmp_path)
    path.write_bytes(b"Index,Question\n1,\xe9\n")
    with pytest.raises(ValueError, match=f"{path}:2: byte 0xe9 is no utf-8"):
        Mmvp.from_files(tmp_path)
    path.write_text("Index,Question,Options,Correct Answer\n")
    with pytest.raises(ValueError, match="mmvp has no questions"):
        Mmvp.from_files(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=str(path)):
        Mmvp.from_files(tmp_path)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown MMVP profile 'leter'; did you mean letter"):
        made("leter")


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile, task.yes_no) == ("mmvp", "letter", False)
