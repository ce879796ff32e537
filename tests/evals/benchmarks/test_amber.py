from __future__ import annotations

import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.amber import Amber, one_decimal
from regaze.evals.task import POOLED, QuestionTask

TYPES = [
    "discriminative-hallucination",
    "discriminative-attribute-state",
    "discriminative-attribute-number",
    "discriminative-attribute-action",
    "discriminative-relation",
    "relation",
]
TRUTHS = {TYPES[0]: "no", TYPES[4]: "yes", TYPES[5]: "no"}
SAID = ("Yes", "No", "No", "No, it isn't.", "Yes", "no", "Yes, sure", "No", "")
METRICS = ("accuracy", "precision", "recall", "f1")


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def record(number: int = 0, **fields: Any) -> dict[str, Any]:
    kind = TYPES[number % 6]
    truth = TRUTHS.get(kind, "yes" if number // 6 % 2 else "no")
    image = f"AMBER_{number // 6 + 1}.jpg"
    row = {"id": number + 1, "image": image, "query": "Is it?", "type": kind, "truth": truth}
    return {**row, **fields}


def made(profile: str = "strict") -> Amber:
    return Amber.from_records([record(number) for number in range(60)], blank, profile=profile)


def answers() -> dict[str, str]:
    return {str(number + 1): SAID[number * 5 % 9] for number in range(60)}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    (folder / "query").mkdir(exist_ok=True)
    parts = {
        "annotations.json": ("id", "type", "truth"),
        "query/query_all.json": ("id", "image", "query"),
    }
    for name, fields in parts.items():
        rows = [{field: row[field] for field in fields} for row in records]
        (folder / name).write_text(json.dumps(rows, indent=1))
    return folder


# Scores


# What the official script printed for these answers.
@pytest.mark.parametrize(
    ("section", "printed"),
    [
        (POOLED, (28.3, 61.9, 37.1, 46.4)),
        ("existence", (0.0, 0.0, 0.0, 0.0)),
        ("attribute", (33.3, 60.0, 40.0, 48.0)),
        ("state", (20.0, 66.6, 40.0, 50.0)),
        ("number", (60.0, 57.1, 80.0, 66.6)),
        ("action", (20.0, 0.0, 0.0, 0.0)),
        ("relation", (35.0, 63.6, 70.0, 66.6)),
    ],
)
def test_strict_gives_what_the_official_script_prints(
    section: str, printed: tuple[float, ...]
) -> None:
    found = sections(made(), answers())[section]
    assert tuple(round(100 * found[name], 9) for name in METRICS) == printed


def test_the_official_f1_of_existence_is_a_little_lower() -> None:
    for kind, section, f1 in ((TYPES[0], "existence", 0.666), (TYPES[1], "state", 0.667)):
        rows = [record(id=i, type=kind, truth="no") for i in range(40)]
        said = {str(i): "Yes" if i % 2 else "No" for i in range(40)}
        task = Amber.from_records(rows, blank, profile="strict")
        assert sections(task, said)[section]["f1"] == pytest.approx(f1)


def test_the_official_f1_adds_a_little_to_its_denominator() -> None:
    rows = [record(id=i, type=TYPES[1], truth="no") for i in range(3)]
    found = sections(
        Amber.from_records(rows, blank, profile="strict"), {"0": "No", "1": "No", "2": "Yes"}
    )
    # Without the 0.0001 it would be 80.0.
    assert round(100 * found["state"]["f1"], 9) == 79.9


def test_the_larger_one_is_for_existence_alone() -> None:
    rows = [record(id=i, type=TYPES[i % 2], truth="no") for i in range(80)]
    said = {str(i): "Yes" if i // 2 % 2 else "No" for i in range(80)}
    found = sections(Amber.from_records(rows, blank, profile="strict"), said)
    assert {name: round(found[name]["f1"], 9) for name in ("existence", "state", POOLED)} == {
        "existence": 0.666,
        "state": 0.667,
        POOLED: 0.667,
    }


def test_three_official_counters_start_higher_than_one() -> None:
    rows = [record(id=i, type=kind, truth="yes") for i, kind in enumerate(TYPES[1:4])]
    found = sections(Amber.from_records(rows, blank, profile="strict"), dict.fromkeys("012", "Yes"))
    shown = [round(100 * found[name]["accuracy"], 9) for name in ("attribute", POOLED)]
    assert shown == [99.9, 100.0]


def test_rounding_is_pythons() -> None:
    assert one_decimal(np.array([[66.65, 0.25], [2.675, 0.05]])).tolist() == [
        [66.7, 0.2],
        [2.7, 0.1],
    ]


def test_yesno_reads_sentences_and_rounds_nothing() -> None:
    found = sections(made("yesno"), answers())[POOLED]
    task, said = made("yesno"), answers()
    truths = {item.id: item.target for item in task.items}
    first = {key: text.lower().partition(",")[0] for key, text in said.items()}
    denied = [key for key, word in first.items() if word == "no"]
    right = sum(truths[key] == "no" for key in denied)
    assert found["accuracy"] == sum(first[key] == truths[key] for key in truths) / 60
    assert found["precision"] == right / len(denied)
    absent = sum(truth == "no" for truth in truths.values())
    assert found["recall"] == right / absent
    assert found["f1"] == pytest.approx(2 * right / (len(denied) + absent))
    assert found["other"] == found["empty"] == sum(not text for text in said.values()) / 60


def test_a_sentence_is_wrong_under_strict_alone() -> None:
    task = Amber.from_records([record()], blank)
    item = task.items[0]
    found = {
        p: task.under(p).counts(item, "No, it is not.") for p in ("strict", "yesno", "vlmevalkit")
    }
    assert [counts["correct"] for counts in found.values()] == [0, 1, 1]
    assert [counts["denied"] for counts in found.values()] == [0, 1, 1]


def test_undefined_scores_are_undefined_except_in_the_official_arithmetic() -> None:
    said = dict.fromkeys(answers(), "Yes")
    assert isnan(sections(made("yesno"), said)[POOLED]["precision"])
    assert sections(made("strict"), said)[POOLED]["precision"] == 0.0


def test_vlmevalkit_quotes_the_mean_over_dimensions() -> None:
    found = sections(made("vlmevalkit"), answers())
    dimensions = [found[name]["accuracy"] for name in ("existence", "attribute", "relation")]
    assert list(found)[-1] == "mean of 3 dimensions"
    assert found["mean of 3 dimensions"]["accuracy"] == pytest.approx(sum(dimensions) / 3)


def test_one_kind_of_question_has_no_totals() -> None:
    rows = [record(number) for number in range(0, 60, 6)]
    said = {str(row["id"]): "No" for row in rows}
    for profile in ("strict", "yesno", "vlmevalkit"):
        assert list(sections(Amber.from_records(rows, blank, profile=profile), said)) == [
            "existence"
        ]


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    found = sections(task, answers())[POOLED]
    assert list(task.directions) == list(found)
    keys = {tuple(task.counts(item, text)) for item in task.items[:6] for text in ("No", "")}
    assert len(keys) == 1


# Reading


def test_files_read_like_records(tmp_path: Path) -> None:
    rows = [record(number) for number in range(12)]
    generative = record(12, type="generative", truth=["sky"], query="Describe this image.")
    task = Amber.from_files(write(tmp_path, [*rows, generative]), tmp_path)
    assert task.items == Amber.from_records(rows, blank).items
    assert task.data_hash == Amber.from_records(rows, blank).data_hash
    assert {item.group for item in task.items} == {
        "existence",
        "state",
        "number",
        "action",
        "relation",
    }
    with pytest.raises(OSError, match=str(tmp_path / "AMBER_1.jpg")):
        task.load_image(task.items[0])


def test_annotations_are_joined_by_id_not_by_order(tmp_path: Path) -> None:
    rows = [record(number) for number in range(12)]
    write(tmp_path, rows)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    assert Amber.from_files(tmp_path, tmp_path).items == Amber.from_records(rows, blank).items


def test_the_profile_decides_on_the_prompt() -> None:
    prompts = [
        Amber.from_records([record()], blank, profile=p).items[0].prompt
        for p in ("yesno", "vlmevalkit")
    ]
    assert prompts == ["Is it?", "Is it?\nPlease answer yes or no."]


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"there is no .*annotations\.json: give the folder data of"):
        Amber.from_files(tmp_path, tmp_path)


def test_files_of_something_else_are_named(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    (tmp_path / "query" / "query_all.json").write_text('[{"question_id": 1, "text": "?"}]')
    with pytest.raises(
        ValueError, match=r"query_all\.json:1: no AMBER question, it lacks id, image"
    ):
        Amber.from_files(tmp_path, tmp_path)
    write(tmp_path, [record()])
    (tmp_path / "annotations.json").write_text('[{"image_id": 1, "caption": "A dog."}]')
    with pytest.raises(ValueError, match=r"annotations\.json:1: no annotated AMBER question"):
        Amber.from_files(tmp_path, tmp_path)


def test_a_query_without_annotation_is_named(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(ValueError, match=r"query_all\.json:1: question 1 is not in .*annotations"):
        Amber.from_files(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truth": "maybe"}, "row 0: truth must be 'yes' or 'no', not 'maybe'"),
        ({"type": "relations"}, "row 0: unknown type of AMBER question 'relations'; did you mean"),
        ({"query": None}, "row 0: no AMBER question, it lacks query"),
    ],
)
def test_odd_rows_are_named(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Amber.from_records([record(**fields)], blank)


def test_repeated_ids_unknown_profiles_and_empty_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1: question 1 is already at row 0"):
        Amber.from_records([record(), record()], blank)
    with pytest.raises(ValueError, match="unknown AMBER profile 'yesn'; did you mean yesno"):
        Amber.from_records([record()], blank, profile="yesn")
    with pytest.raises(ValueError, match="unknown AMBER profile"):
        Amber.from_records([record()], blank).under("official")
    with pytest.raises(ValueError, match="amber has no questions"):
        Amber.from_records([], blank)
    with pytest.raises(ValueError, match="AMBER isn't read from the Hub: give its own files"):
        Amber.from_hub()


def test_it_is_a_task() -> None:
    task: QuestionTask = made("yesno")
    assert (task.name, task.profile, task.yes_no) == ("amber", "yesno", True)
    assert task.load_image(task.items[0]).size == (1, 1)


def test_the_published_files_hold_what_the_paper_says(data_dir: Path) -> None:
    if not (data_dir / "amber" / "annotations.json").is_file():
        pytest.skip(f"{data_dir} holds no AMBER files")
    task = Amber.from_files(data_dir / "amber", data_dir)
    assert len(task.items) == 14216
    assert len({item.cluster for item in task.items}) == 1004
