from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.vstar import PROFILES, VStar, lmms_letter
from regaze.evals.task import POOLED, QuestionTask

Row = dict[str, Any]
ENDING = "Answer with the option's letter from the given choices directly."
OPTIONS = "\n(A) rubber\n(B) cotton (soft)\n(C) kevlar\n"


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def lettered(number: int = 0, label: str = "B", **fields: Any) -> Row:
    row = {"question_id": str(number), "image": f"{number}.jpg", "label": label}
    return {**row, "category": "direct_attributes", "text": f"Which?{OPTIONS}{ENDING}", **fields}


def likely(number: int = 0, **fields: Any) -> Row:
    row = {"question_id": str(number), "image": f"{number}.jpg", "question": "Which?"}
    return {**row, "category": "direct_attributes", "options": ["It is b.", "It is c."], **fields}


def letters() -> VStar:
    other = {"category": "relative_position", "text": "Where?\n(A) left\n(B) right"}
    rows = [lettered(), lettered(1, "C"), lettered(2, "A", **other)]
    return VStar.from_records(rows, blank)


# Scores


def test_letters_count_by_category_and_pooled() -> None:
    ids = [item.id for item in letters().items]
    assert ids == ["direct_attributes/0", "direct_attributes/1", "relative_position/2"]
    found = sections(letters(), dict(zip(ids, ("B", "(A)", "A. left"), strict=True)))
    assert found["direct_attributes"]["accuracy"] == 0.5
    assert found["relative_position"]["accuracy"] == 1
    assert found[POOLED]["accuracy"] == pytest.approx(2 / 3)
    assert found[POOLED]["first_ratio"] == pytest.approx(2 / 3)
    assert list(found)[-1] == POOLED


def test_the_likeliest_option_is_the_answer() -> None:
    task = VStar.from_records([likely(), likely(1)], blank, profile="likelihood")
    said = {"direct_attributes/0": "It is b.", "direct_attributes/1": "It is c."}
    assert sections(task, said)["direct_attributes"]["accuracy"] == 0.5
    assert task.items[0].choices == ("It is b.", "It is c.")
    assert task.items[0].prompt == "Which?"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "B"),
        ("cat", "C"),
        ("The answer is (D)", "D"),
        ("It must be option: c, surely", "C"),
        ("maybe [b] or (a)", "A"),
        ("I nod.", "D"),
        ("it is a thing", "A"),
        ("zebra", ""),
        ("rob", "B"),
        ("", ""),
        ("none", ""),
    ],
)
def test_letters_are_read_as_lmms_eval_reads_them(text: str, letter: str) -> None:
    assert lmms_letter(text) == letter


def test_vlmevalkit_reads_an_option_by_its_text_too() -> None:
    row = lettered()
    task = VStar.from_records([row], blank, profile="vlmevalkit")
    assert task.counts(task.items[0], "it is cotton (soft)")["correct"] == 1
    assert task.counts(task.items[0], "kevlar")["correct"] == 0
    assert task.counts(task.items[0], "no idea")["other"] == 1


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = letters()
    assert list(task.directions) == list(
        sections(task, {"direct_attributes/0": "B"})["direct_attributes"]
    )
    assert len({tuple(task.counts(task.items[0], text)) for text in ("B", "")}) == 1


# What is asked


def test_prompts_are_those_of_the_scripts_however_the_text_ends() -> None:
    options = "A. rubber\nB. cotton (soft)\nC. kevlar"
    for text in (f"Which?{OPTIONS}{ENDING}", "Which? (A) rubber (B) cotton (soft) (C) kevlar"):
        items = VStar.from_records([lettered(text=text)], blank).items
        assert items[0].prompt == f"Which?\n{options}\n{ENDING}"
        assert items[0].target == {"options": ["rubber", "cotton (soft)", "kevlar"], "right": 1}


def test_a_profile_that_asks_for_something_else_needs_a_run_of_its_own() -> None:
    with pytest.raises(ValueError, match="make a run of its own with --profile likelihood"):
        letters().under("likelihood")


def test_letters_whose_right_option_is_always_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match="option A is right in all V.Bench questions"):
        VStar.from_records([lettered(0, "A"), lettered(1, "A")], blank)


# Reading


def released(folder: Path) -> Path:
    lines = []
    for number, category in enumerate(("direct_attributes", "relative_position")):
        (folder / category).mkdir()
        stem = folder / category / f"sa_{number}"
        Image.new("L", (4, 4), 10 + number).save(stem.with_suffix(".jpg"), quality=100)
        options = {
            "question": "Which?",
            "options": ["It is b.", "It is c."],
            "bbox": [[0, 0, 1, 1]],
        }
        stem.with_suffix(".json").write_text(json.dumps(options))
        row = lettered(number, "AB"[number], category=category)
        lines.append(json.dumps({**row, "image": f"{category}/sa_{number}.jpg"}))
    (folder / "test_questions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("profile", PROFILES)
def test_the_released_folder_is_read(tmp_path: Path, profile: str) -> None:
    task = VStar.from_files(released(tmp_path), profile=profile)
    assert [item.image for item in task.items] == [
        *("direct_attributes/sa_0.jpg", "relative_position/sa_1.jpg")
    ]
    assert [item.group for item in task.items] == ["direct_attributes", "relative_position"]
    assert [task.load_image(item).getpixel((0, 0)) for item in task.items] == [
        *((10, 10, 10), (11, 11, 11))
    ]
    assert all(bool(item.choices) == (profile == "likelihood") for item in task.items)


def test_what_the_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds none of V.Bench's folders"):
        VStar.from_files(tmp_path, profile="likelihood")
    with pytest.raises(FileNotFoundError, match="test_questions.jsonl: letters are asked for"):
        VStar.from_files(tmp_path, profile="letter")
    released(tmp_path)
    (tmp_path / "direct_attributes" / "sa_0.jpg").unlink()
    task = VStar.from_files(tmp_path, profile="likelihood")
    with pytest.raises(OSError, match=r"there is no image .*sa_0\.jpg"):
        task.load_image(task.items[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "E"}, "row 1: text must be a question and options from '\\(A\\)' on"),
        ({"label": " "}, "row 1: text must be"),
        ({"label": "D"}, "row 1: text must be"),
        ({"text": "Which?"}, "row 1: text must be"),
        ({"category": None}, "row 1: no V.Bench question, it lacks category"),
        ({"question_id": "0"}, "row 1: question direct_attributes/0 is already at row 0"),
    ],
)
def test_odd_rows_are_named(fields: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VStar.from_records([lettered(), lettered(1) | fields], blank)


def test_one_option_is_no_choice() -> None:
    with pytest.raises(ValueError, match="row 0: at least two options"):
        VStar.from_records([likely(options=["x"])], blank, profile="likelihood")


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown V.Bench profile 'leter'; did you mean letter"):
        VStar.from_records([lettered()], blank, profile="leter")


def test_it_is_a_task() -> None:
    task: QuestionTask = letters()
    assert (task.name, task.profile) == ("vstar", "letter")
