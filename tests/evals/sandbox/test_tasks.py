"""POPE and CHAIR ground truth of the sandbox: the official rules, checked against the scenes."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from regaze.evals.polling import KINDS
from regaze.evals.sandbox.scenes import scene
from regaze.evals.sandbox.tasks import CROWD, chair_truth, find_scene, load_image, pope_records
from regaze.evals.sandbox.text import question

IMAGES = 40


@pytest.fixture(scope="module", params=["validation", "test", "test-prior"])
def records(request: pytest.FixtureRequest) -> list[dict[str, str | int]]:
    return pope_records(request.param, IMAGES)


def _present(key: str) -> set[str]:
    return {question(item.phrase) for item in find_scene(key).objects}


def test_every_label_is_the_truth(records: list[dict[str, str | int]]) -> None:
    for record in records:
        assert (record["text"] in _present(str(record["image"]))) == (record["label"] == "yes")


def test_each_category_alternates_yes_and_no_under_ids_from_one(
    records: list[dict[str, str | int]],
) -> None:
    for category in KINDS:
        own = [record for record in records if record["category"] == category]
        assert [record["label"] for record in own] == ["yes", "no"] * IMAGES
        assert [record["question_id"] for record in own] == list(range(1, 2 * IMAGES + 1))


def test_an_image_has_two_different_neighbouring_questions(
    records: list[dict[str, str | int]],
) -> None:
    groups = groupby(records, key=lambda record: (record["category"], record["image"]))
    texts = [[record["text"] for record in group] for _, group in groups]
    assert len(texts) == len(KINDS) * IMAGES
    assert all(len(set(group)) == len(group) == 2 for group in texts)


def test_categories_share_images_and_positives(records: list[dict[str, str | int]]) -> None:
    positives = [
        [(r["image"], r["text"]) for r in records if r["category"] == c and r["label"] == "yes"]
        for c in KINDS
    ]
    assert positives[0] == positives[1] == positives[2]


def test_the_positive_is_the_first_listed_object(records: list[dict[str, str | int]]) -> None:
    for record in records[::2]:
        assert record["text"] == question(find_scene(str(record["image"])).objects[0].phrase)


def test_popular_negatives_are_few_and_favoured_by_the_prior() -> None:
    negatives = Counter(
        r["text"]
        for r in pope_records("test", IMAGES)
        if r["category"] == "popular" and r["label"] == "no"
    )
    assert len(negatives) <= 8
    assert negatives.most_common(1)[0][1] > IMAGES / 2


def test_adversarial_negatives_keep_the_company_of_their_positive() -> None:
    records = [r for r in pope_records("test", 500) if r["category"] == "adversarial"]
    after_circle = [
        negative["text"]
        for positive, negative in zip(records[::2], records[1::2], strict=True)
        if str(positive["text"]).endswith("red circle in the image?")
    ]
    assert "Is there a blue square in the image?" in after_circle


def test_the_seed_changes_random_negatives_only() -> None:
    first, second = pope_records("test", IMAGES, seed=0), pope_records("test", IMAGES, seed=1)
    differs = {a["category"] for a, b in zip(first, second, strict=True) if a != b}
    assert differs == {"random"}


def test_fewer_images_are_the_first_of_more() -> None:
    few, many = pope_records("test", 5), pope_records("test", 10)
    for category in KINDS:
        own = [record for record in many if record["category"] == category]
        assert [record for record in few if record["category"] == category] == own[: 5 * 2]


def test_chair_truth_lists_what_is_drawn_in_the_first_crowded_scenes() -> None:
    truth = chair_truth("test", 20)
    crowded = [s.key for s in (scene("test", i) for i in range(200)) if len(s.objects) >= CROWD]
    assert list(truth) == crowded[:20]
    for key, phrases in truth.items():
        assert phrases == [item.phrase for item in find_scene(key).objects]


def test_an_image_is_found_by_its_key() -> None:
    assert load_image("test/00012").tobytes() == find_scene("test/00012").image.tobytes()


@pytest.mark.parametrize("key", ["test", "test/", "test/x", "00012"])
def test_a_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        load_image(key)


def test_an_unknown_split_in_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'.*'test'"):
        load_image("tset/00012")
