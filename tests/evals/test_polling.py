from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
from PIL import Image

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.polling import KINDS, Kind, Record, build_questions, with_article

SCENES = {
    "a.jpg": ["dog", "cat", "sofa", "dog"],
    "b.jpg": ["dog", "cat", "tree"],
    "c.jpg": ["dog", "apple", "tree"],
    "d.jpg": ["dog", "cat"],
    "e.jpg": ["bus", "car", "apple"],
}


def asked(records: list[Record], label: str) -> list[str]:
    return [str(r["text"]) for r in records if r["label"] == label]


def names(records: list[Record], image: str, label: str) -> list[str]:
    texts = [str(r["text"]) for r in records if r["image"] == image and r["label"] == label]
    return [text.removeprefix("Is there ").split(" ", 1)[1].split(" in the")[0] for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_yes_and_no_alternate_and_negatives_are_absent_and_new(kind: Kind) -> None:
    records = build_questions(SCENES, kind, images=None)
    assert [r["label"] for r in records] == ["yes", "no"] * 12
    assert [r["question_id"] for r in records] == list(range(1, 25))
    assert {r["category"] for r in records} == {kind}
    for image in ("a.jpg", "b.jpg", "c.jpg", "e.jpg"):
        negatives = names(records, image, "no")
        assert len(set(negatives)) == 3
        assert not set(negatives) & set(SCENES[image])
        assert names(records, image, "yes") == list(dict.fromkeys(SCENES[image]))[:3]


def test_images_with_too_few_objects_are_left_out() -> None:
    records = build_questions(SCENES, "random", images=None)
    assert {r["image"] for r in records} == {"a.jpg", "b.jpg", "c.jpg", "e.jpg"}


def test_popular_negatives_follow_the_frequency_in_the_drawn_images() -> None:
    records = build_questions(SCENES, "popular", images=None)
    # dog 3, then cat, tree, apple with 2 in order of first sight
    assert names(records, "e.jpg", "no") == ["dog", "cat", "tree"]
    assert names(records, "a.jpg", "no") == ["tree", "apple", "bus"]


def test_adversarial_negatives_follow_the_companions_of_the_positive_before_them() -> None:
    records = build_questions(SCENES, "adversarial", images=None)
    # a: dog goes with tree twice; cat with tree once; sofa only with what the image shows
    assert names(records, "a.jpg", "no")[0] == "tree"
    # c: dog -> cat; apple -> bus (after what the image shows); tree -> nothing new but a random one
    assert names(records, "c.jpg", "no")[:2] == ["cat", "bus"]


def test_frequency_can_be_counted_over_other_images() -> None:
    counted = [["kite", "dog"], ["kite", "bird"], ["fork", "bird", "kite"]]
    records = build_questions(SCENES, "popular", images=None, counted=counted)
    assert names(records, "e.jpg", "no") == ["kite", "bird", "dog"]


def test_all_kinds_of_one_seed_share_images_and_positives() -> None:
    drawn = [build_questions(SCENES, kind, images=2, seed=4) for kind in KINDS]
    assert len({tuple(r["image"] for r in records) for records in drawn}) == 1
    assert len({tuple(asked(records, "yes")) for records in drawn}) == 1


def test_the_seed_decides_on_images_and_random_objects() -> None:
    scenes = {str(i): [f"x{i}", f"y{i}", f"z{i}"] for i in range(9)}
    runs = [build_questions(scenes, "random", images=3, seed=seed) for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert any(runs[0] != run for run in runs[2:])


def test_random_negatives_are_uniform_over_the_absent_objects() -> None:
    scenes = {"x": ["a1", "a2", "a3"], **{f"{i}": ["b", "c", "d"] for i in range(50)}}
    first = Counter(
        names(build_questions(scenes, "random", images=None, seed=seed), "x", "no")[0]
        for seed in range(600)
    )
    assert set(first) == {"b", "c", "d"}
    assert all(150 < count < 250 for count in first.values())


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("apple", "an apple"),
        ("orange ball", "an orange ball"),
        ("dog", "a dog"),
        ("hour", "a hour"),
    ],
)
def test_the_article_goes_by_the_first_letter(name: str, phrase: str) -> None:
    assert with_article(name) == phrase


def test_the_article_leaves_the_rest_of_the_question_alone() -> None:
    records = build_questions(SCENES, "popular", images=None)
    assert "Is there an apple in the image?" in asked(records, "yes")


def test_built_questions_make_a_task() -> None:
    records = [r for kind in KINDS for r in build_questions(SCENES, kind, images=2)]
    task = Pope.from_records(records, lambda key: Image.new("RGB", (1, 1)))
    assert len(task.items) == 36
    assert {item.group for item in task.items} == set(KINDS)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of negative 'common'"):
        build_questions(SCENES, cast(Any, "common"))
    with pytest.raises(ValueError, match="only 4 of 5 images have at least 3 objects, 500"):
        build_questions(SCENES, "random")
    with pytest.raises(ValueError, match=r"no object is left to ask for that a\.jpg lacks"):
        build_questions({"a.jpg": ["dog", "cat", "sofa"]}, "popular", images=None)
