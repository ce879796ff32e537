from __future__ import annotations

import json
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from mmhals import release, reply, row
from scoring import sections

from regaze.evals.benchmarks.mmhal import MmHal, answer_key, export, read_verdicts
from regaze.evals.task import POOLED, QuestionTask

Row = dict[str, Any]


def judged(folder: Path, *said: str) -> tuple[MmHal, dict[str, str]]:
    task = release(folder, len(said))
    answers = {item.id: f"answer {item.id}" for item in task.items}
    export(task, answers, folder / "a.json")
    (folder / "a.verdicts.json").write_text(json.dumps([reply(text) for text in said]))
    known = read_verdicts(folder / "a.json", folder / "a.verdicts.json")
    return replace(task, verdicts=known), answers


# Scores


def test_ratings_count_by_the_rules_of_the_authors_script(tmp_path: Path) -> None:
    # By the rules of Eval/summarize_gpt_mmhal.py these are 6, 2, 3, 0, 0, 0 and 1: read off the
    # script by hand, it wasn't run.
    said = (
        *("Fine.\nRating: 6, very informative", "- Hallucination: yes\nrating: 2", "Rating: 3."),
        *("Rating: 5 or rating: 4", "I can't rate this.", "Rating:5", "Rating: 10"),
    )
    task, answers = judged(tmp_path, *said)
    found = sections(task, answers)[POOLED]
    assert found["rating"] == pytest.approx(12 / 7)
    assert found["hallucination_rate"] == pytest.approx(5 / 7)
    assert found["unclear"] == pytest.approx(3 / 7)
    assert found["unrated"] == 0


def test_types_of_questions_are_scored_apart(tmp_path: Path) -> None:
    task, answers = judged(tmp_path, "Rating: 6", "Rating: 0", "Rating: 4", "Rating: 2")
    found = sections(task, answers)
    assert (found["counting"]["rating"], found["attribute"]["rating"]) == (5, 1)
    assert list(found)[-1] == POOLED


def test_an_answer_without_verdict_is_left_out_and_told(tmp_path: Path) -> None:
    task, answers = judged(tmp_path, "Rating: 6", "Rating: 0")
    found = sections(task, {**answers, "2": "another answer"})[POOLED]
    assert (found["rating"], found["hallucination_rate"], found["unrated"]) == (6, 0, 0.5)
    found = sections(replace(task, verdicts={}), answers)[POOLED]
    assert isnan(found["rating"])
    assert found["unrated"] == 1


def test_every_metric_has_a_direction_and_counts_keep_their_keys(tmp_path: Path) -> None:
    task, answers = judged(tmp_path, "Rating: 6", "Rating: 0")
    assert list(task.directions) == list(sections(task, answers)[POOLED])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("answer 1", "")}) == 1


# Files


def test_the_released_file_is_read(tmp_path: Path) -> None:
    task = release(tmp_path)
    assert [item.id for item in task.items] == ["1", "2", "3", "4"]
    assert [item.image for item in task.items] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert task.items[0].prompt == "How many, 1?"
    assert task.load_image(task.items[0]).getpixel((0, 0)) == (9, 9, 9)


def test_what_is_exported_is_the_release_with_answers_in_its_order(tmp_path: Path) -> None:
    task = release(tmp_path)
    export(task, {item.id: f"answer {item.id}" for item in task.items}, tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows == [row(n, model_answer=f"answer {n}") for n in range(1, 5)]
    with pytest.raises(ValueError, match="3 of 4 questions have no answer yet, e.g. 2"):
        export(task, {"1": "x"}, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_verdicts_keep_the_judge_and_what_it_said(tmp_path: Path) -> None:
    task, _ = judged(tmp_path, "Rating: 6", "So. Rating: 1, bad")
    verdict = task.verdicts["2", answer_key("answer 2")]
    assert (verdict.rating, verdict.judge) == (1, "gpt-4-0314")
    assert verdict.text == "So. Rating: 1, bad"


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([], "holds 0 replies, .* has 2 answers"),
        ({}, "holds no list of replies"),
        ([reply("x"), {"error": "quota"}], r"v\.json:2: no chat completion, .*quota"),
        ([reply("x"), None], r"v\.json:2: no chat completion"),
    ],
)
def test_odd_replies_are_named(tmp_path: Path, replies: Any, message: str) -> None:
    task = release(tmp_path, 2)
    export(task, {"1": "x", "2": "y"}, tmp_path / "a.json")
    (tmp_path / "v.json").write_text(json.dumps(replies))
    with pytest.raises(ValueError, match=message):
        read_verdicts(tmp_path / "a.json", tmp_path / "v.json")


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}]')
    with pytest.raises(ValueError, match="no MMHal-Bench question, .* it looks like one of POPE"):
        MmHal.from_files(path, tmp_path)


def test_it_is_a_task(tmp_path: Path) -> None:
    task: QuestionTask = release(tmp_path)
    assert (task.name, task.profile) == ("mmhal", "official")
