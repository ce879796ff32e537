from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.hallusionbench import HallusionBench
from regaze.evals.task import POOLED, QuestionTask

KINDS = (("VD", "illusion"), ("VD", "ocr"), ("VS", "ocr"), ("VS", "map"))
ACCURACIES = ("accuracy", "f_acc", "q_acc", "easy", "hard")
# 0 wrong, 1 right, 2 unclear, as the official script codes what its judge says.
JUDGED = (1, 1, 0, 1, 2, 1, 1, 1, 1, 1, 1, 0, 1, 2)


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(
    kind: tuple[str, str] = KINDS[0], part: str = "000", answer: str = "1", **fields: Any
) -> dict[str, Any]:
    category, subcategory = kind
    group, figure, question = tuple(part)
    original = {"VD": "1", "VS": "0"}[category] if figure == "0" else "2"
    row = {
        **{"category": category, "subcategory": subcategory, "set_id": group},
        **{"figure_id": figure, "question_id": question, "question": "Is it?"},
        **{"gt_answer": answer, "filename": "not used"},
        "visual_input": "1" if category == "VS" and figure == "1" else original,
    }
    return {**row, **fields}


def records() -> list[dict[str, Any]]:
    parts = [s + f + q for s in "01" for f in "012" for q in "01"]
    return [record(k, p, str(sum(map(int, p)) % 2)) for k in KINDS for p in parts]


def made(profile: str = "yesno") -> HallusionBench:
    return HallusionBench.from_records(records(), blank, profile=profile)


def answers(task: HallusionBench) -> dict[str, str]:
    said = {}
    for place, item in enumerate(task.items):
        judged = JUDGED[place * 3 % 14 if place % 5 else 0]
        wrong = {"yes": "No.", "no": "Yes."}[item.target]
        said[item.id] = (wrong, f"{item.target.title()}, it is.", "I can't tell.")[judged]
    return said


# Scores


# What the official script counted for these answers.
@pytest.mark.parametrize(
    ("section", "counted"),
    [
        (POOLED, (39 / 48, 12 / 20, 7 / 16, 11 / 16, 12 / 16)),
        ("VD", (20 / 24, 8 / 12, 4 / 8, 6 / 8, 6 / 8)),
        ("VS", (19 / 24, 4 / 8, 3 / 8, 5 / 8, 6 / 8)),
        ("VS/map", (10 / 12, 2 / 4, 2 / 4, 3 / 4, 3 / 4)),
    ],
)
def test_accuracies_are_those_of_the_official_script(
    section: str, counted: tuple[float, ...]
) -> None:
    task = made()
    found = sections(task, answers(task))[section]
    assert tuple(found[name] for name in ACCURACIES) == counted
    assert found["average"] == pytest.approx(sum(counted[:3]) / 3)


def test_not_knowing_is_right_only_where_there_is_no_figure() -> None:
    task = made()
    said = dict.fromkeys((item.id for item in task.items), "Uncertain.")
    found = sections(task, said)
    assert (found["VD"]["accuracy"], found["VS"]["accuracy"]) == (0.0, 1 / 3)
    assert found["VS"]["f_acc"] == 0.0


def test_vlmevalkit_leaves_out_questions_without_image() -> None:
    task = made("vlmevalkit")
    said = {i.id: i.target if i.image else "wrong" for i in task.items}
    found = sections(task, said)
    assert [found["VS"][name] for name in ACCURACIES] == [1.0] * 5
    said = {i.id: "wrong" if i.image else i.target for i in task.items}
    assert [sections(task, said)["VS"][name] for name in ACCURACIES] == [0.0] * 5
    only_text = {i.id: i.target for i in task.items if not i.image}
    found = sections(task, only_text)
    assert all(isnan(found["VS/map"][name]) for name in ("accuracy", "f_acc", "q_acc", "words"))


def test_profiles_read_the_same_answers_differently() -> None:
    task = made()
    item = next(i for i in task.items if i.target == "yes")
    found = [task.under(p).counts(item, "Yes, no doubt.") for p in ("yesno", "vlmevalkit")]
    assert [counts["correct"] for counts in found] == [1, 0]


def test_every_metric_has_a_direction_and_tallies_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, answers(task))[POOLED])
    keys = {
        tuple(task.under(p).tally([i], [task.under(p).counts(i, text)]))
        for p in ("yesno", "vlmevalkit")
        for text in ("yes", "")
        for i in task.items
    }
    assert len(keys) == 1


# Reading


def test_the_released_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps(records()))
    folder = tmp_path / "VD" / "illusion"
    folder.mkdir(parents=True)
    Image.new("RGB", (2, 2), (0, 7, 0)).save(folder / "0_0.png")
    task = HallusionBench.from_files(path, tmp_path)
    assert task.items == made().items
    assert task.edited == made().edited
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (0, 7, 0)
    with pytest.raises(OSError, match=str(folder / "0_1.png")):
        task.load_image(task.items[2])


def test_some_questions_have_no_image_and_all_have_their_set_as_cluster() -> None:
    items = HallusionBench.from_records(
        [record(), record(KINDS[3], "210", "0"), record(KINDS[3], "201")], blank
    ).items
    assert [(i.id, i.image, i.cluster, i.group, i.target) for i in items] == [
        ("VD/illusion/0/0/0", "VD/illusion/0_0.png", "VD/illusion/0", "VD/illusion", "yes"),
        ("VS/map/2/1/0", "VS/map/2_1.png", "VS/map/2", "VS/map", "no"),
        ("VS/map/2/0/1", None, "VS/map/2", "VS/map", "yes"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gt_answer": "2"}, "row 1: gt_answer must be 0 or 1, not '2'"),
        ({"set_id": None}, "row 1: no HallusionBench question, it lacks set_id"),
        ({}, "row 1: question VD/illusion/0/0/0 is already at row 0"),
    ],
)
def test_odd_rows_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HallusionBench.from_records([record(), record(**fields)], blank)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text('{"question_id": 1, "image": "a.jpg", "text": "?", "label": "no"}')
    with pytest.raises(
        ValueError, match=rf"{path}:1: no HallusionBench question, it lacks category"
    ):
        HallusionBench.from_files(path, tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="hallusionbench has no questions"):
        HallusionBench.from_files(path, tmp_path)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown HallusionBench profile 'yes-no'"):
        made("yes-no")


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile, task.yes_no) == ("hallusionbench", "yesno", True)
    assert len(task.items) == 48


def test_the_published_file_holds_what_the_paper_says(data_dir: Path) -> None:
    path = data_dir / "hallusionbench" / "HallusionBench.json"
    if not path.is_file():
        pytest.skip(f"{data_dir} holds no HallusionBench file")
    task = HallusionBench.from_files(path, data_dir)
    assert len(task.items) == 1129
    assert sum(item.image is None for item in task.items) == 178
