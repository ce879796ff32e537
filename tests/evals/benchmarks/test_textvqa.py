from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.task import QuestionTask

Row = dict[str, Any]


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(number: int = 1, image: str = "a", **fields: Any) -> Row:
    row = {"question_id": number, "image_id": image, "question": "what Brand is it?"}
    return {
        **row,
        "answers": ["nokia"] * 3 + ["Nokia.", "the nokia", "x", "y", "z", "2", "two"],
    } | (fields)


def made(profile: str = "official") -> TextVqa:
    return TextVqa.from_records([record(), record(2, "b"), record(3)], blank, profile=profile)


# Scores


def test_answers_earn_what_people_agree() -> None:
    said = {"1": "Nokia", "2": "two", "3": "samsung"}
    found = sections(made(), said)["all"]
    assert found["accuracy"] == pytest.approx((1 + 0.6 + 0) / 3)
    assert (found["words"], found["empty"]) == (1, 0)
    task = made()
    assert [task.counts(task.items[0], text)["correct"] for text in ("nokia", "2", "x", "")] == [
        *(1, 1, 0, 0)
    ]


def test_profiles_read_the_same_answers_in_their_own_way() -> None:
    row = record(answers=["joe's"] * 10)
    task = TextVqa.from_records([row], blank)
    said = {"1": "joe 's"}
    assert sections(task, said)["all"]["accuracy"] == 1
    assert sections(task.under("vlmevalkit"), said)["all"]["accuracy"] == 0


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, {"1": "x"})["all"])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("nokia", "")}) == 1


# Reading


def files(folder: Path, rows: list[Row]) -> tuple[Path, Path]:
    data = folder / "TextVQA_0.5.1_val.json"
    data.write_text(json.dumps({"dataset_type": "val", "data": rows}))
    images = folder / "train_images"
    images.mkdir(exist_ok=True)
    for row in rows:
        Image.new("L", (2, 2), 40).save(images / f"{row['image_id']}.jpg")
    return data, images


def test_the_released_file_is_read(tmp_path: Path) -> None:
    rows = [record(), record(2, "b"), record(3)]
    task = TextVqa.from_files(*files(tmp_path, rows))
    assert task.items == made().items
    assert [item.id for item in task.items] == ["1", "3", "2"]
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (40, 40, 40)


def test_prompts_are_those_of_the_scripts() -> None:
    ending = "\nAnswer the question using a single word or phrase."
    assert made().items[0].prompt == "what Brand is it?" + ending
    assert made("lmms").items[0].prompt == "What brand is it?" + ending


@pytest.mark.parametrize(
    "form",
    [
        "{q}\nReference OCR token: NOKIA\nAnswer the question.",
        "Reference OCR token: NOKIA\n{q}\nAnswer the question.",
        "{q}\nAnswer the question.",
    ],
)
def test_prompts_with_hints_are_found_by_image_and_question(tmp_path: Path, form: str) -> None:
    data, images = files(tmp_path, [record(), record(2, "b")])
    prompts = tmp_path / "llava.jsonl"
    asked = {"b": "what BRAND is it?", "a": "What brand is it?"}
    texts = {image: form.format(q=question) for image, question in asked.items()}
    prompts.write_text(
        "\n".join(json.dumps({"question_id": k, "text": text}) for k, text in texts.items())
    )
    task = TextVqa.from_files(data, images, prompts=prompts)
    assert [item.prompt for item in task.items] == [texts["a"], texts["b"]]
    prompts.write_text(json.dumps({"question_id": "a", "text": texts["a"]}))
    with pytest.raises(ValueError, match="the prompts file has no question .* about image b"):
        TextVqa.from_files(data, images, prompts=prompts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": None}, "row 1: no TextVQA question, it lacks answers"),
        ({"answers": "nokia"}, "row 1: answers must be a list of ten, not 'nokia'"),
        ({"question_id": 1}, "row 1: question 1 is already at row 0"),
    ],
)
def test_odd_rows_are_named(fields: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextVqa.from_records([record(), record(2, **fields)], blank)


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"image": "a.jpg", "text": "?", "label": "yes", "question_id": 1}]')
    with pytest.raises(ValueError, match=f"{path} is no TextVQA file"):
        TextVqa.from_files(path, tmp_path)
    path.write_text('{"image": "a.jpg"}\n{"image": "b.jpg"}\n')
    with pytest.raises(ValueError, match=rf"{path} is JSON lines.*\(TextVQA_0.5.1_val.json is"):
        TextVqa.from_files(path, tmp_path)
    path.write_text('{"data": []}')
    with pytest.raises(ValueError, match="textvqa has no questions"):
        TextVqa.from_files(path, tmp_path)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown TextVQA profile 'oficial'; did you mean off"):
        made("oficial")


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile) == ("textvqa", "official")
