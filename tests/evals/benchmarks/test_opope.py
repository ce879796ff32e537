from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.opope import Opope, mentions
from regaze.evals.polling import KINDS
from regaze.evals.task import QuestionTask

TRUTH = {
    "1.jpg": ["dog", "hot dog", "cat"],
    "2.jpg": ["car", "bus", "person"],
    "3.jpg": ["cup", "spoon", "fork"],
}


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def made(**options: Any) -> Opope:
    return Opope.from_truth(TRUTH, blank, **options)


@pytest.mark.parametrize(
    ("caption", "name", "found"),
    [
        ("a dog", "hot dog", True),
        ("hotels", "hot dog", True),
        ("please catch it", "cat", True),
        ("Dog", "dog", False),
        ("a cup of tea", "wine glass", False),
        ("", "dog", False),
    ],
)
def test_names_are_looked_up_as_the_script_does(caption: str, name: str, found: bool) -> None:
    assert mentions(caption, name) is found


def test_every_image_gets_three_objects_of_each_sign_and_kind() -> None:
    for item in made().items:
        assert item.image is not None
        assert item.target["present"] == TRUTH[item.image][:3]
        for kind in KINDS:
            absent = item.target[kind]
            assert len(set(absent)) == 3
            assert not set(absent) & set(TRUTH[item.image])


def test_scores_by_hand() -> None:
    task = made()
    first, *_ = task.items
    absent = {kind: first.target[kind] for kind in KINDS}
    said = "a dog and " + absent["random"][0]
    wrong = {kind: sum(mentions(said, n) for n in names) for kind, names in absent.items()}
    found = sections(task, {first.id: said})["all"]
    for kind in KINDS:
        precision, recall = 2 / (2 + wrong[kind]), 2 / 3
        assert found[f"{kind}_precision"] == pytest.approx(precision)
        assert found[f"{kind}_accuracy"] == pytest.approx((2 + 3 - wrong[kind]) / 6)
        assert found[f"{kind}_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        beta = 1.04 * precision * recall / (0.04 * precision + recall)
        assert found[f"{kind}_f_beta"] == pytest.approx(beta)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(sum(found[f"{k}_precision"] for k in KINDS) / 3)
    assert wrong["random"] >= 1


def test_scores_follow_the_formulas_of_the_script() -> None:
    # Worked out by hand for TP 5, FP 2, TN 7, FN 4 with the formulas of print_acc in
    # BillChan226/HALC@12ea8b5; the script itself wasn't run.
    counts = {"tp": 5, "asked": 9, **{f"fp_{kind}": 2 for kind in KINDS}, "words": 9, "n": 3}
    sums = {key: np.array(float(value)) for key, value in {**counts, "empty": 0}.items()}
    found = made().metrics(sums)
    assert found["accuracy"] == pytest.approx(0.6666666666666666)
    assert found["precision"] == pytest.approx(0.7142857142857143)
    assert found["recall"] == pytest.approx(0.5555555555555556)
    assert found["f1"] == pytest.approx(0.6250000000000001)


def test_a_caption_that_says_nothing_has_no_precision() -> None:
    found = sections(made(), {"1.jpg": ""})["all"]
    assert found["precision"] != found["precision"]
    assert (found["recall"], found["accuracy"], found["empty"]) == (0, 0.5, 1)


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert made(count=2, seed=1).items == made(count=2, seed=1).items
    assert len(made(count=2).items) == 2
    drawn = {tuple(item.id for item in made(count=2, seed=seed).items) for seed in range(8)}
    assert len(drawn) > 1


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, {"1.jpg": "a dog"})["all"])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("dog", "")}) == 1


def test_popes_own_file_and_a_folder_of_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "coco_ground_truth_segmentation.json"
    rows = [{"image": name, "objects": [*names, names[0]]} for name, names in TRUTH.items()]
    rows.append({"image": "4.jpg", "objects": ["dog", "dog", "cat"]})
    path.write_text("\n".join(map(json.dumps, rows)))
    for name in ("1.jpg", "2.jpg", "4.jpg"):
        Image.new("L", (2, 2), 7).save(tmp_path / name)
    task = Opope.from_files(path, tmp_path, count=None)
    assert [item.id for item in task.items] == ["1.jpg", "2.jpg"]
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(ValueError, match="only 2 of 2 images .* 500 are asked for"):
        Opope.from_files(path, tmp_path)
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]))
    with pytest.raises(ValueError, match=rf"{path}:2: the image 1.jpg is in the file twice"):
        Opope.from_files(path, tmp_path)
    path.write_text('{"image": "1.jpg", "text": "?", "label": "yes"}')
    with pytest.raises(ValueError, match="lacks objects .*; it looks like one of POPE"):
        Opope.from_files(path, tmp_path)
    path.write_text('{"image": "9.jpg", "objects": ["a", "b", "c"]}')
    with pytest.raises(ValueError, match="no image of .* has 3 objects"):
        Opope.from_files(path, tmp_path)


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile, task.under("official")) == ("opope", "official", task)
    with pytest.raises(ValueError, match="opope has only the profile 'official', not 'x'"):
        task.under("x")
