from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.aokvqa import PROFILES, AOkvqa, llava_letter
from regaze.evals.task import QuestionTask

Row = dict[str, Any]
CHOICES = ["skateboarder", "train", "delivery", "cab"]


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(name: str = "q1", **fields: Any) -> Row:
    row = {"question_id": name, "image": "a", "image_id": 299207, "question": "What comes?"}
    truth = {"choices": CHOICES, "correct_choice_idx": 3, "difficult_direct_answer": False}
    return {**row, **truth, "direct_answers": ["cab"] * 2 + ["taxi"] * 8, **fields}


def made(profile: str) -> AOkvqa:
    return AOkvqa.from_records([record(), record("q2", image="b")], blank, profile=profile)


def earned(profile: str, text: str) -> float:
    task = made(profile)
    return sections(task, {"q1": text})["all"]["accuracy"]


# Scores


@pytest.mark.parametrize(
    ("profile", "text", "accuracy"),
    [
        ("official", "cab", 1),
        ("official", "train", 0),
        ("official", "Cab", 0),
        ("letter", "D", 1),
        ("letter", " D\n", 1),
        ("letter", "D. cab", 1),
        ("letter", "The answer is D.", 1),
        ("letter", "d", 0),
        ("letter", "cab", 0),
        ("vlmevalkit", "cab", 1),
        ("vlmevalkit", "(D)", 1),
        ("vlmevalkit", "the train or the cab", 0),
        ("direct", "taxi", 1),
        ("direct", "cab", 2 / 3),
        ("direct", "Taxi.", 0),
        ("direct/vqa", "Taxi.", 1),
        ("direct/vqa", "", 0),
    ],
)
def test_answers_earn_what_the_profile_says(profile: str, text: str, accuracy: float) -> None:
    assert earned(profile, text) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("E", ""),
        ("B. x", "B"),
        ("B.x", ""),
        ("The answer is C.", "C"),
        ("The answer is C", ""),
        ("The answer is B. No: The answer is C.", ""),
        ("The answer is E.", ""),
        ("AB", ""),
        ("", ""),
    ],
)
def test_letters_are_read_as_llavas_script_reads_them(text: str, letter: str) -> None:
    assert llava_letter(text) == letter


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    for profile in PROFILES:
        task = made(profile)
        assert list(task.directions) == list(sections(task, {"q1": "x"})["all"])
        assert len({tuple(task.counts(task.items[0], text)) for text in ("cab", "")}) == 1


# What is asked


def test_each_profile_asks_in_its_own_way() -> None:
    asked = {profile: made(profile).items[0] for profile in PROFILES}
    assert (asked["official"].prompt, asked["official"].choices) == ("What comes?", tuple(CHOICES))
    options = "A. skateboarder\nB. train\nC. delivery\nD. cab"
    assert asked["letter"].prompt == (
        f"What comes?\n{options}\nAnswer with the option's letter from the given choices directly."
    )
    assert asked["vlmevalkit"].prompt.startswith(f"Question: What comes?\nOptions:\n{options}\n")
    assert asked["direct"].prompt == (
        "What comes?\nAnswer the question using a single word or phrase."
    )
    assert not any(asked[profile].choices for profile in PROFILES if profile != "official")


def test_a_profile_that_asks_for_something_else_needs_a_run_of_its_own() -> None:
    assert made("direct").under("direct/vqa").profile == "direct/vqa"
    for other in ("official", "direct", "vlmevalkit"):
        with pytest.raises(ValueError, match=f"make a run of its own with --profile {other}"):
            made("letter").under(other)


def test_difficult_questions_are_only_left_out_of_direct_answers() -> None:
    rows = [record(), record("q2", difficult_direct_answer=True)]
    asked = {
        profile: len(AOkvqa.from_records(rows, blank, profile=profile).items)
        for profile in PROFILES
    }
    assert asked == {"official": 2, "letter": 2, "vlmevalkit": 2, "direct": 1, "direct/vqa": 1}


# Reading


def test_the_released_file_and_cocos_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "aokvqa_v1p0_val.json"
    row = record()
    del row["image"]
    path.write_text(json.dumps([row]))
    Image.new("L", (2, 2), 50).save(tmp_path / "000000299207.jpg")
    task = AOkvqa.from_files(path, tmp_path)
    assert (task.items[0].id, task.items[0].image) == ("q1", "000000299207.jpg")
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (50, 50, 50)


def test_the_hubs_list_in_words_is_read() -> None:
    row = record(direct_answers="['cab', 'taxi']")
    assert AOkvqa.from_records([row], blank).items[0].target["answers"] == ["cab", "taxi"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["a", "b"]}, "row 1: four choices and a correct_choice_idx from 0 to 3"),
        ({"correct_choice_idx": 4}, "row 1: four choices"),
        ({"correct_choice_idx": None}, "row 1: no A-OKVQA question, it lacks correct_choice_idx"),
        ({"question_id": "q1"}, "row 1: question q1 is already at row 0"),
        ({"direct_answers": []}, "row 1: no direct_answers"),
        ({"direct_answers": "['cab"}, "row 1: direct_answers must be a list"),
    ],
)
def test_odd_rows_are_named(fields: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AOkvqa.from_records([record(), record("q2") | fields], blank, profile="direct")


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown A-OKVQA profile 'leter'; did you mean letter"):
        made("leter")


def test_it_is_a_task() -> None:
    task: QuestionTask = made("letter")
    assert (task.name, task.profile) == ("aokvqa", "letter")
