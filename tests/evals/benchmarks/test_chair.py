from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chairs import TABLE, hide_nltk_data
from PIL import Image

from regaze.evals.benchmarks.chair import Chair, phrase_extractor
from regaze.evals.benchmarks.chair_tokens import require_nltk_data
from regaze.evals.benchmarks.chair_words import ObjectFinder
from regaze.evals.task import QuestionTask


def values(task: QuestionTask, captions: Mapping[str, str]) -> dict[str, float]:
    counted = [task.counts(item, captions[item.id]) for item in task.items]
    sums = {key: np.array(float(sum(row[key] for row in counted))) for key in counted[0]}
    return {name: float(value) for name, value in task.metrics(sums).items()}


# COCO


@dataclass
class Coco:
    """COCO files of three images: a man with a dog, nothing, and a bus."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        return [self.folder / "instances_val2014.json", self.folder / "captions_val2014.json"]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def write(self, file: Path, **content: Any) -> None:
        file.write_text(json.dumps({"images": [{"id": i} for i in (1, 2, 3)], **content}))

    def task(self, **options: Any) -> Chair:
        return Chair.from_coco(
            self.files, self.images, **{"words": TABLE, "count": None, **options}
        )


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    files = Coco(tmp_path)
    files.images.mkdir()
    for number in (1, 2, 3):
        image = Image.new("RGB", (2, 2), (number, 0, 0))
        image.save(files.images / f"COCO_val2014_{number:012}.png")
    pairs = ((1, 10), (1, 20), (1, 10), (3, 30))
    files.write(
        files.files[0],
        categories=[
            {"id": 10, "name": "person"},
            {"id": 20, "name": "dog"},
            {"id": 30, "name": "bus"},
        ],
        annotations=[{"image_id": image, "category_id": name} for image, name in pairs],
    )
    files.write(files.files[1], annotations=[{"image_id": 3, "caption": "A child in a bus."}])
    return files


def test_the_stand_in_for_missing_data_is_on_record(
    coco: Coco, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_nltk_data(monkeypatch)
    task = coco.task()
    assert task.profile == "official/rule"
    assert isinstance(task.find, ObjectFinder)
    assert task.find.sentences == "rule"


def test_the_truth_is_what_was_annotated_and_what_references_mention(coco: Coco) -> None:
    task = coco.task()
    assert {item.id: set(task.truth[item.id]) for item in task.items} == {
        "1": {"person", "dog"},
        "2": set(),
        "3": {"bus", "person"},
    }


def test_captions_are_scored_from_sums_over_images(coco: Coco) -> None:
    captions = {
        "1": "A man, a dog and a dog.",
        "2": "A cat sleeps.",
        "3": "Two buses with a puppy.",
    }
    found = values(coco.task(), captions)
    assert found["chair_s"] == 2 / 3
    assert found["chair_i"] == 2 / 6
    assert found["recall"] == 3 / 4
    assert found["precision"] == 3 / 5
    assert found["f1"] == pytest.approx(2 / (4 / 3 + 5 / 3))
    assert found["words"] == (9 + 4 + 6) / 3


def test_captions_without_objects_leave_chair_i_undefined(coco: Coco) -> None:
    found = values(coco.task(), {"1": "", "2": "Hills.", "3": "Sky."})
    assert np.isnan([found["chair_i"], found["precision"], found["f1"]]).all()
    assert (found["chair_s"], found["recall"], found["empty"]) == (0.0, 0.0, 1 / 3)


def test_a_caption_is_correct_if_nothing_in_it_is_hallucinated(coco: Coco) -> None:
    task = coco.task()
    texts = ("A man.", "", "A man and a cat.")
    assert [task.counts(task.items[0], text)["correct"] for text in texts] == [1, 1, 0]


def test_counts_have_the_same_keys_for_all_captions(coco: Coco) -> None:
    task = coco.task()
    assert len({tuple(task.counts(task.items[0], text)) for text in ("", "A dog.")}) == 1


def test_every_metric_has_a_direction(coco: Coco) -> None:
    task = coco.task()
    assert list(task.directions) == list(values(task, dict.fromkeys("123", "A dog.")))


def test_images_are_found_in_the_folder(coco: Coco) -> None:
    task = coco.task()
    assert [task.load_image(item).getpixel((0, 0)) for item in task.items] == [
        (1, 0, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    (coco.images / task.items[1].cluster).unlink()
    with pytest.raises(OSError, match=task.items[1].cluster):
        task.load_image(task.items[1])


def test_images_are_drawn_by_seed_from_their_sorted_names(coco: Coco) -> None:
    drawn = [[i.id for i in coco.task(count=2, seed=seed).items] for seed in range(8)]
    assert drawn[0] == [i.id for i in coco.task(count=2, seed=0).items]
    assert all(ids == sorted(ids) and len(ids) == 2 for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 1


def test_two_profiles_share_items_and_hash(coco: Coco) -> None:
    try:
        require_nltk_data()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    official = coco.task()
    opera = official.under("opera")
    assert opera.profile == "opera"
    assert (opera.items, opera.data_hash) == (official.items, official.data_hash)
    assert found_by(official, "A bus.") == []
    assert found_by(opera, "A bus.") == ["bus"]


def found_by(task: Chair, text: str) -> list[str]:
    return [mention.word for mention in task.find(text).mentions]


def test_the_hash_follows_the_annotations(coco: Coco) -> None:
    before = coco.task().data_hash
    assert coco.task().data_hash == before
    coco.write(coco.files[1], annotations=[{"image_id": 3, "caption": "A dog in a bus."}])
    assert coco.task().data_hash != before


def test_an_image_that_the_annotations_do_not_know_is_refused(coco: Coco) -> None:
    Image.new("RGB", (2, 2)).save(coco.images / "COCO_val2014_000000000009.png")
    with pytest.raises(ValueError, match=r"000000000009\.png \(id 9\) is not in the annotation"):
        coco.task()


def test_an_image_without_a_number_is_refused(coco: Coco) -> None:
    Image.new("RGB", (2, 2)).save(coco.images / "holiday.png")
    with pytest.raises(ValueError, match=r"'holiday\.png' doesn't end with a COCO image id"):
        coco.task()


def test_a_class_that_the_table_does_not_know_is_refused(coco: Coco) -> None:
    with pytest.raises(ValueError, match="class 'bus' is not in CHAIR's word table"):
        coco.task(words={"person": "person", "dog": "dog"})


def test_too_few_images_are_refused(coco: Coco) -> None:
    with pytest.raises(ValueError, match="holds 3 images, 500 are asked for"):
        coco.task(count=500)
    for image in coco.images.iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="holds 0 images"):
        coco.task()


def test_both_kinds_of_annotation_are_needed(coco: Coco) -> None:
    with pytest.raises(ValueError, match="hold no captions"):
        Chair.from_coco(coco.files[:1], coco.images, words=TABLE, count=None)
    with pytest.raises(ValueError, match="hold no instances"):
        Chair.from_coco(coco.files[1:], coco.images, words=TABLE, count=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "malformed JSON"), ("[]", "no COCO"), ('{"questions": []}', "no COCO")],
)
def test_another_file_is_no_annotation_file(coco: Coco, content: str, message: str) -> None:
    coco.files[0].write_text(content)
    with pytest.raises(ValueError, match=f"{coco.files[0]}.*{message}"):
        coco.task()


# Truth in memory


def drawn(truth: Mapping[str, list[str]]) -> Chair:
    extract = phrase_extractor(["red", "blue"], ["circle", "star"])
    return Chair.from_truth(truth, extract, lambda key: Image.new("RGB", (4, 4)))


def test_phrases_of_two_neighbouring_words_are_objects() -> None:
    extract = phrase_extractor(["red", "blue"], ["circle", "star"])
    text = "A Red circle, a blue star and a red\nstar. A red, circle; a green star, a circle red."
    assert extract(text) == ["red circle", "blue star", "red star"]


def test_drawn_scenes_are_scored_by_their_phrases() -> None:
    task = drawn({"0": ["red circle", "blue star"], "1": ["red star"]})
    captions = {"0": "a red circle and a red star .", "1": "a red star and a red star ."}
    found = values(task, captions)
    assert (found["chair_s"], found["chair_i"]) == (1 / 2, 1 / 4)
    assert (found["recall"], found["precision"], found["words"]) == (2 / 3, 2 / 3, 8)


def test_drawn_scenes_have_no_other_profile() -> None:
    with pytest.raises(ValueError, match="only the profile 'exact'"):
        drawn({"0": []}).under("opera")


def test_no_image_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="chair has no questions"):
        drawn({})


def test_it_is_a_task() -> None:
    task: QuestionTask = drawn({"0": ["red star"]})
    assert (task.name, task.profile, task.max_new_tokens) == ("chair", "exact", 64)
    assert task.items[0].prompt == "Describe the image."
    assert task.load_image(task.items[0]).size == (4, 4)
