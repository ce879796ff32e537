from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hubs import fake_hub
from PIL import Image
from popes import Record, blank, question, values

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.task import QuestionTask


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# Reading


def test_questions_about_one_image_are_neighbours_across_subsets(tmp_path: Path) -> None:
    records = [question(1, "b.jpg"), question(2, "a.jpg"), question(3, "b.jpg", "no")]
    files = [
        write(tmp_path / f"coco_pope_{subset}.json", records) for subset in ("random", "popular")
    ]
    items = Pope.from_files(files, tmp_path).items
    assert [item.id for item in items] == [
        *("random/1", "random/3", "popular/1", "popular/3"),
        *("random/2", "popular/2"),
    ]
    assert [item.image for item in items] == ["b.jpg"] * 4 + ["a.jpg"] * 2


def test_a_json_array_reads_like_json_lines(tmp_path: Path) -> None:
    records = [question(1), question(2, label="no")]
    lines = write(tmp_path / "lines_random.json", records)
    array = tmp_path / "array_random.json"
    array.write_text(json.dumps(records, indent=4))
    first, second = (Pope.from_files([path], tmp_path) for path in (lines, array))
    assert first.items == second.items
    assert first.data_hash == second.data_hash


def test_the_category_field_outweighs_the_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "coco_pope_random.json", [question(category="adversarial")])
    assert Pope.from_files([path], tmp_path).items[0].group == "adversarial"


def test_a_file_of_another_name_is_a_subset_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [question()])
    assert Pope.from_files([path], tmp_path).items[0].id == "mine/1"


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_text(f"\ufeff\n{json.dumps(question())}\r\n\n", encoding="utf-8")
    assert len(Pope.from_files([path], tmp_path).items) == 1


def test_the_hash_follows_the_data(tmp_path: Path) -> None:
    hashes = {
        Pope.from_records([record], blank).data_hash
        for record in (question(), question(), question(label="no"), question(image="b.jpg"))
    }
    assert len(hashes) == 3


def test_images_come_from_the_folder_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 7).save(tmp_path / "a.png")
    path = write(tmp_path / "random.json", [question(image="a.png")])
    task = Pope.from_files([path], tmp_path)
    image = task.load_image(task.items[0])
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\n0000"])
def test_a_missing_or_damaged_image_is_named_when_it_is_loaded(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    path = write(tmp_path / "random.json", [question(image="a.png")])
    task = Pope.from_files([path], tmp_path)
    with pytest.raises(OSError, match=str(tmp_path / "a.png")):
        task.load_image(task.items[0])


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    task = Pope.from_files([write(tmp_path / "random.json", [question(image="a.png")])], tmp_path)
    with pytest.raises(OSError, match=str(path)):
        task.load_image(task.items[0])


# Bad question files


def test_a_malformed_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_text(f"{json.dumps(question())}\n{{'question_id': 2}}\n")
    with pytest.raises(ValueError, match=rf"{path}:2: malformed JSON"):
        Pope.from_files([path], tmp_path)


def test_a_malformed_array_is_named_with_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_text(f"[\n{json.dumps(question())}\n{json.dumps(question())}]\n")
    with pytest.raises(ValueError, match=rf"{path}:3: malformed JSON"):
        Pope.from_files([path], tmp_path)


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_text('"yes"\n')
    with pytest.raises(ValueError, match=rf"{path}:1: expected a JSON object"):
        Pope.from_files([path], tmp_path)


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=f"{path} is a JPEG picture; JSON is expected"):
        Pope.from_files([path], tmp_path)


def test_a_file_of_another_benchmark_is_told_by_its_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "chair.jsonl", [{"image_id": 1, "caption": "A dog."}])
    message = r":1: no POPE question, it lacks question_id, image, text, label \(it has image_id"
    with pytest.raises(ValueError, match=message):
        Pope.from_files([path], tmp_path)


def test_a_wrong_label_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "random.json", [question(), question(2, label="maybe")])
    with pytest.raises(ValueError, match=rf"{path}:2: label must be 'yes' or 'no', not 'maybe'"):
        Pope.from_files([path], tmp_path)


def test_a_repeated_question_is_named_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path / "random.json", [question(), question(2), question(1)])
    with pytest.raises(ValueError, match=rf"{path}:3: question random/1 is already at {path}:1"):
        Pope.from_files([path], tmp_path)


def test_the_same_number_in_two_subsets_is_no_repetition(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{s}.json", [question()]) for s in ("random", "popular")]
    assert len(Pope.from_files(files, tmp_path).items) == 2


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        Pope.from_files([path], tmp_path)
    with pytest.raises(ValueError, match="no questions"):
        Pope.from_records([], blank)


# The published files


@pytest.fixture
def published(data_dir: Path) -> Pope:
    files = [
        data_dir / "pope" / f"coco_pope_{s}.json" for s in ("random", "popular", "adversarial")
    ]
    if not all(path.is_file() for path in files):
        pytest.skip(f"{data_dir} holds no POPE question files")
    return Pope.from_files(files, data_dir)


def test_published_files_hold_six_questions_an_image_and_subset(published: Pope) -> None:
    assert len(published.items) == 9000
    by_subset_and_image = Counter((item.group, item.image) for item in published.items)
    assert len(by_subset_and_image) == 1500
    assert set(by_subset_and_image.values()) == {6}
    signs = Counter((item.group, item.target) for item in published.items)
    assert set(signs.values()) == {1500}


def test_published_files_come_in_500_blocks_of_one_image(published: Pope) -> None:
    blocks = [published.items[start : start + 18] for start in range(0, 9000, 18)]
    assert [len({item.image for item in block}) for block in blocks] == [1] * 500
    assert len({block[0].cluster for block in blocks}) == 500


def test_right_answers_to_the_published_files_score_one(published: Pope) -> None:
    found = values(published, [item.target for item in published.items])
    assert [found[m] for m in ("accuracy", "precision", "recall", "f1")] == [1.0] * 4
    assert found["yes_ratio"] == 0.5


# The Hub


def hub_row(number: int, shade: int, answer: str, **more: Any) -> Record:
    image = Image.new("L", (2, 2), shade)
    row = {"question_id": number, "question": "Is it?", "answer": answer, "image": image}
    return {**row, "category": "popular", **more}


def test_hub_rows_become_questions_with_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        hub_row(1, 10, "yes", image_source="x"),
        hub_row(2, 20, "no", image_source="y"),
        hub_row(3, 10, "no", image_source="x"),
    ]
    fake_hub(monkeypatch, {"test": rows})
    task = Pope.from_hub()
    assert [item.id for item in task.items] == ["popular/1", "popular/3", "popular/2"]
    assert [item.target for item in task.items] == ["yes", "no", "no"]
    assert [item.image for item in task.items] == ["x", "x", "y"]
    shades = [task.load_image(item).getpixel((0, 0)) for item in task.items]
    assert shades == [(10, 10, 10), (10, 10, 10), (20, 20, 20)]


def test_hub_rows_without_image_names_are_told_apart_by_their_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [hub_row(1, 10, "yes"), hub_row(2, 20, "no"), hub_row(3, 10, "no")]
    fake_hub(monkeypatch, {"test": rows})
    items = Pope.from_hub().items
    assert [item.id for item in items] == ["popular/1", "popular/3", "popular/2"]
    assert items[0].cluster == items[1].cluster != items[2].cluster


def test_the_hub_needs_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install"):
        Pope.from_hub()


# Files about other images


def test_files_about_other_images_have_subsets_of_their_own(tmp_path: Path) -> None:
    names = ("coco_pope_random", "aokvqa_pope_seem_random", "gqa_pope_seem_random")
    paths = [tmp_path / f"{name}.json" for name in names]
    for path in paths:
        path.write_text(json.dumps([question()], indent=4))
    items = Pope.from_files(paths, tmp_path).items
    assert [item.group for item in items] == ["random", "aokvqa/random", "gqa/random"]
    assert [item.id for item in items] == ["random/1", "aokvqa/random/1", "gqa/random/1"]


# The protocol


def test_it_is_a_task() -> None:
    task: QuestionTask = Pope.from_records([question()], blank)
    assert (task.name, task.profile) == ("pope", "official")
    assert task.load_image(task.items[0]).size == (1, 1)
