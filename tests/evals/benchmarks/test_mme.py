from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.mme import COGNITION, HALLUCINATION, PERCEPTION, SUBSETS, Mme
from regaze.evals.task import QuestionTask

SAID = (
    *("Yes", "No.", "yes, it is", "no", "  yes", "I know", "Y", "n."),
    *("There is no", "", "Yes and no", "NO!", "Not at all"),
)
ASKS = "Is it? Please answer yes or no."


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(subset: str = "color", image: int = 0, answer: str = "Yes") -> dict[str, Any]:
    name = f"{subset}/{image}.jpg"
    return {"question_id": name, "category": subset, "question": ASKS, "answer": answer}


def pair(subset: str = "color", image: int = 0) -> list[dict[str, Any]]:
    return [record(subset, image, answer) for answer in ("Yes", "No")]


def made(profile: str = "lmms", subsets: tuple[str, ...] = SUBSETS) -> Mme:
    rows = [row for subset in subsets for image in range(3) for row in pair(subset, image)]
    return Mme.from_records(rows, blank, profile=profile)


def answers(task: Mme) -> dict[str, str]:
    return {item.id: SAID[7 * place % 13] for place, item in enumerate(task.items)}


# Scores


# What the scripts computed for these answers; the first subset's scores under the second.
@pytest.mark.parametrize(
    ("profile", "perception", "cognition"),
    [("lmms", 550, 700 / 3), ("official", 800 / 3, 350 / 3)],
)
def test_points_are_those_of_the_scripts(profile: str, perception: float, cognition: float) -> None:
    task = made(profile)
    found = sections(task, answers(task))
    assert found["perception"]["score"] == pytest.approx(perception)
    assert found["cognition"]["score"] == pytest.approx(cognition)
    if profile == "official":
        scores = [found[name]["score"] for name in HALLUCINATION]
        assert scores == pytest.approx([100 / 3, 100 / 3, 50 / 3, 100 / 3])


def test_right_answers_reach_the_maximum_and_one_word_reaches_fifty_points() -> None:
    task = made()
    found = sections(task, {item.id: item.target.title() for item in task.items})
    assert [found[name]["score"] for name in ("perception", "cognition")] == [2000, 800]
    assert found["hallucination subsets"]["score"] == 800
    found = sections(task, dict.fromkeys((item.id for item in task.items), "Yes"))
    assert (found["color"]["score"], found["perception"]["score"]) == (50, 500)
    assert found["perception"]["yes_ratio"] == 1.0


def test_both_questions_about_an_image_must_be_right_for_acc_plus() -> None:
    task = made(subsets=("color",))
    said = dict(
        zip([i.id for i in task.items], ["yes", "no", "yes", "yes", "no", "yes"], strict=True)
    )
    found = sections(task, said)["color"]
    assert (found["accuracy"], found["acc_plus"]) == (1 / 2, 1 / 3)
    assert found["score"] == pytest.approx(50 + 100 / 3)


def test_an_image_with_one_answer_says_nothing_of_acc_plus() -> None:
    task = made(subsets=("color",))
    found = sections(task, {"color/0.jpg/1": "yes", "color/1.jpg/1": "yes", "color/1.jpg/2": "yes"})
    assert (found["color"]["accuracy"], found["color"]["acc_plus"]) == (2 / 3, 0.0)
    assert isnan(sections(task, {"color/0.jpg/1": "yes"})["color"]["score"])


def test_totals_need_all_their_subsets_and_perception_is_last() -> None:
    four = made(subsets=HALLUCINATION)
    assert list(sections(four, answers(four))) == [*HALLUCINATION, "hallucination subsets"]
    ten = made(subsets=PERCEPTION)
    assert list(sections(ten, answers(ten)))[10:] == ["hallucination subsets", "perception"]
    assert len(COGNITION) == 4


def test_profiles_read_the_same_answers_differently() -> None:
    task = made()
    item = task.items[0]
    found = {
        text: tuple(
            task.under(p).counts(item, text)["correct"] for p in ("official", "lmms", "vlmevalkit")
        )
        for text in ("  yes", "y", "Yes and no", "It is, yes")
    }
    assert found == {
        "  yes": (0, 1, 1),
        "y": (0, 1, 0),
        "Yes and no": (1, 1, 0),
        "It is, yes": (0, 0, 1),
    }


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, answers(task))["perception"])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("yes", "")}) == 1
    assert set(task.absolute) <= set(task.directions)


# Reading


def write(folder: Path, text: str = f"{ASKS}\tYes\n{ASKS}\tNo\n\n") -> Path:
    """Two subsets in the two ways of the release."""
    flat, split = folder / "color", folder / "artwork"
    for place in (flat, split / "images", split / "questions_answers_YN"):
        place.mkdir(parents=True)
    (flat / "0001.txt").write_text(text)
    (split / "questions_answers_YN" / "7.txt").write_text(text)
    Image.new("RGB", (2, 2), (9, 0, 0)).save(flat / "0001.png")
    Image.new("RGB", (2, 2), (0, 9, 0)).save(split / "images" / "7.jpg")
    return folder


def test_both_layouts_of_the_release_are_read(tmp_path: Path) -> None:
    task = Mme.from_files(write(tmp_path))
    assert [(i.id, i.group, i.target) for i in task.items] == [
        ("color/0001.png/1", "color", "yes"),
        ("color/0001.png/2", "color", "no"),
        ("artwork/images/7.jpg/1", "artwork", "yes"),
        ("artwork/images/7.jpg/2", "artwork", "no"),
    ]
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (9, 0, 0)
    assert task.load_image(task.items[2]).size == (2, 2)


def test_the_profile_decides_on_the_end_of_a_question(tmp_path: Path) -> None:
    write(tmp_path)
    prompts = [Mme.from_files(tmp_path, profile=p).items[0].prompt for p in ("official", "lmms")]
    assert prompts == [ASKS, "Is it?\nAnswer the question using a single word or phrase."]


def test_a_folder_without_subsets_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds none of MME's folders: existence, count"
    ):
        Mme.from_files(tmp_path)


def test_a_text_file_without_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "color" / "0001.png").unlink()
    with pytest.raises(
        ValueError, match=r"0001\.txt has no image .*0001\.jpg \(or \.png, \.jpeg\)"
    ):
        Mme.from_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it? Yes\n", r"0001\.txt:1: no MME question, it isn't a question, a tab and Yes or No"),
        (f"{ASKS}\tYes\n{ASKS}\tPerhaps\n", r"0001\.txt:2: the answer must be Yes or No"),
        (f"{ASKS}\tYes\n", r"MME asks two questions about an image, not 1 as of color/0001\.png"),
    ],
)
def test_malformed_text_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mme.from_files(write(tmp_path, text))


def test_a_text_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "color" / "0001.txt").write_bytes("é?\tYes\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"0001\.txt:1: byte 0x\w\w is no utf-8"):
        Mme.from_files(tmp_path)


def test_odd_rows_unknown_profiles_and_empty_sets_are_refused() -> None:
    with pytest.raises(
        ValueError, match="row 0: unknown subset of MME 'colour'; did you mean color"
    ):
        Mme.from_records(pair("colour"), blank)
    with pytest.raises(ValueError, match="row 0: no MME question, it lacks question_id, category"):
        Mme.from_records([{"question": "?", "answer": "Yes"}], blank)
    with pytest.raises(ValueError, match="not 4 as of color/0.jpg"):
        Mme.from_records(pair() + pair(), blank)
    with pytest.raises(ValueError, match="unknown MME profile 'lmm'; did you mean lmms"):
        Mme.from_records(pair(), blank, profile="lmm")
    with pytest.raises(ValueError, match="mme has no questions"):
        Mme.from_records([], blank)


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile, task.yes_no) == ("mme", "lmms", True)
    assert len(task.items) == 84
