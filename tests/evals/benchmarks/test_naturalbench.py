"""NaturalBench: groups of two questions about two images."""

from __future__ import annotations

import json
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hubs import fake_hub
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.naturalbench import NaturalBench
from regaze.evals.task import POOLED

PLACES = ("q0_i0", "q0_i1", "q1_i0", "q1_i1")
RIGHT = {"yes_no": ("Yes", "No", "No", "Yes"), "multiple_choice": ("A", "B", "B", "A")}


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def group(number: int = 0, kind: str = "yes_no", **fields: Any) -> dict[str, Any]:
    answers = dict(
        zip(
            (
                "Image_0_Question_0",
                "Image_1_Question_0",
                "Image_0_Question_1",
                "Image_1_Question_1",
            ),
            RIGHT[kind],
            strict=True,
        )
    )
    shown = {f"Image_{i}": f"{number}_{i}.png" for i in (0, 1)}
    asked = {f"Question_{q}": f"Is it {q}?" for q in (0, 1)}
    return {"Index": number, **shown, **asked, **answers, "Question_Type": kind, **fields}


def singles(number: int = 0, kind: str = "yes_no") -> list[dict[str, Any]]:
    """The same group as lmms-eval has it."""
    row = group(number, kind)
    return [
        {
            "Index": str(4 * number + place),
            "Question": row[f"Question_{q}"],
            "Image": row[f"Image_{i}"],
            "Answer": row[f"Image_{i}_Question_{q}"],
            "Question_Type": kind,
        }
        for place, (q, i) in enumerate(product((0, 1), (0, 1)))
    ]


def official(said: list[str], kind: str) -> tuple[float, float, float, float]:
    """G, Q, I and accuracy of one group as defined by the paper, section 3."""
    q0_i0, q0_i1, q1_i0, q1_i1 = (a == b for a, b in zip(said, RIGHT[kind], strict=True))
    questions = (q0_i0 and q0_i1) + (q1_i0 and q1_i1)
    images = (q0_i0 and q1_i0) + (q0_i1 and q1_i1)
    alone = q0_i0 + q0_i1 + q1_i0 + q1_i1
    return float(alone == 4), questions / 2, images / 2, alone / 4


# Scores


@pytest.mark.parametrize("kind", RIGHT)
def test_all_sixteen_outcomes_of_a_group_score_as_defined(kind: str) -> None:
    task = NaturalBench.from_records([group(kind=kind)], blank)
    options = ("Yes", "No") if kind == "yes_no" else ("A", "B")
    for said in product(options, repeat=4):
        answers = {f"0/{place}": text for place, text in zip(PLACES, said, strict=True)}
        found = sections(task, answers)[kind]
        scores = tuple(found[name] for name in ("g_acc", "q_acc", "i_acc", "accuracy"))
        assert scores == official([*said], kind)


def test_always_yes_gets_half_the_answers_and_no_pair() -> None:
    task = NaturalBench.from_records([group(i) for i in range(3)], blank)
    found = sections(task, {item.id: "Yes." for item in task.items})["yes_no"]
    assert [found[name] for name in ("g_acc", "q_acc", "i_acc", "accuracy", "yes_ratio")] == [
        0.0, 0.0, 0.0, 0.5, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("yes_no", "No, yes would be wrong", "no"),
        ("yes_no", "YES", "yes"),
        ("yes_no", "Yesterday, no", "no"),
        ("yes_no", "Nothing", "other"),
        ("multiple_choice", "B: a helmet", "b"),
        ("multiple_choice", "a helmet, so B", "a"),
        ("multiple_choice", "Option (B)", "b"),
        ("multiple_choice", "Absolutely", "other"),
        ("multiple_choice", "Yes", "other"),
    ],
)
def test_the_first_word_or_letter_decides(kind: str, text: str, said: str) -> None:
    task = NaturalBench.from_records([group(kind=kind)], blank)
    counts = [task.counts(item, text) for item in task.items]
    assert [each["correct"] for each in counts] == [int(i.target == said) for i in task.items]
    assert {each["other"] for each in counts} == {int(said == "other")}


def test_types_stand_apart_and_all_are_pooled() -> None:
    rows = [group(0), group(1, "multiple_choice"), group(2)]
    task = NaturalBench.from_records(rows, blank)
    said = {f"{n}/{p}": "Yes" if n == 0 else RIGHT[rows[n]["Question_Type"]][k]
            for n in range(3) for k, p in enumerate(PLACES)}  # fmt: skip
    found = sections(task, said)
    assert list(found) == ["yes_no", "multiple_choice", POOLED]
    assert [found[name]["g_acc"] for name in found] == [1 / 2, 1.0, 2 / 3]
    assert isnan(found["multiple_choice"]["yes_ratio"])


def test_a_group_with_an_answer_missing_is_no_group() -> None:
    task = NaturalBench.from_records([group(0), group(1)], blank)
    said = {f"{n}/{p}": RIGHT["yes_no"][k] for n in (0, 1) for k, p in enumerate(PLACES)}
    del said["1/q1_i1"]
    found = sections(task, said)["yes_no"]
    assert (found["g_acc"], found["q_acc"], found["accuracy"]) == (1.0, 1.0, 1.0)
    assert isnan(sections(task, {"0/q0_i0": "Yes"})["yes_no"]["g_acc"])


# Files


def test_all_three_layouts_ask_the_same(tmp_path: Path) -> None:
    groups = [group(0), group(1, "multiple_choice")]
    flat = [*singles(0), *singles(1, "multiple_choice")]
    listed = [
        [
            row["Question"] + NaturalBench.from_records([group(kind=row["Question_Type"])], blank)
            .items[0].prompt.removeprefix("Is it 0?"),
            row["Image"],
            row["Answer"],
            "mcq" if row["Question_Type"] == "multiple_choice" else "yes_no",
        ]
        for row in flat
    ]  # fmt: skip
    tasks = []
    for name, content in (("a.json", groups), ("b.json", flat), ("c.json", listed)):
        (tmp_path / name).write_text(json.dumps(content, indent=1))
        tasks.append(NaturalBench.from_files(tmp_path / name, tmp_path))
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, groups)))
    tasks.append(NaturalBench.from_files(tmp_path / "d.jsonl", tmp_path))
    assert len({task.data_hash for task in tasks}) == 1
    first = tasks[0].items[0]
    assert (first.id, first.image, first.cluster, first.group) == (
        "0/q0_i0", "0_0.png", "0", "yes_no",
    )  # fmt: skip
    assert first.prompt == "Is it 0?Please answer Yes or No."
    # Questions about one image are neighbours, so that they share its prefix.
    assert [item.image for item in tasks[0].items[:4]] == ["0_0.png"] * 2 + ["0_1.png"] * 2


def test_lmms_puts_a_blank_before_the_ending() -> None:
    task = NaturalBench.from_records([group(kind="multiple_choice")], blank, profile="lmms")
    ending = "Please output the letter corresponding to the correct option."
    assert task.items[0].prompt == f"Is it 0? {ending}"
    with pytest.raises(ValueError, match="make a run of its own with --profile official"):
        task.under("official")


def test_the_hub_s_two_images_a_row_are_loaded_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    shades = [Image.new("RGB", (2, 2), (shade,) * 3) for shade in (10, 20)]
    asked = fake_hub(monkeypatch, {"train": [group(Image_0=shades[0], Image_1=shades[1])]})
    task = NaturalBench.from_hub()
    assert asked == [("BaiqiL/NaturalBench", None)]
    assert [task.load_image(item).getpixel((0, 0)) for item in task.items] == [
        (10,) * 3, (10,) * 3, (20,) * 3, (20,) * 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([group(Question_Type="open")], "row 0: unknown type of NaturalBench question 'open'"),
        ([group(Image_0_Question_0="maybe")], "row 0: the answer .* is yes or no, not 'maybe'"),
        ([group(kind="multiple_choice", Image_1_Question_1="C")], "is a or b, not 'C'"),
        ([group(Question_1=None)], "row 0: no NaturalBench question, it lacks Question_1"),
        ([group(Question_1=["a"])], r"row 0: Question_1 must be text, not \['a'\]"),
        ([group(Image_1=7)], "row 0: Image_1 must be text, not 7"),
        ([group(), group()], r"row 1: question 0/q0_i0 is already at row 0"),
        (singles()[:3], "row 0: NaturalBench's questions come in fours, here are 3 more"),
        ([*singles()[:2], *singles(1)[2:]], "row 0: these four are not two questions about two"),
        ([{**singles()[0], "Image": 3}, *singles()[1:]], "row 0: Image must be text"),
        ([{"image": "a.jpg", "text": "?", "label": "yes"}], "looks like one of POPE"),
    ],
)
def test_odd_rows_are_named(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NaturalBench.from_records(rows, blank)


def test_lists_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[["Is it?", "a.png", "Yes", "yes_no"], ["Is it?"]]')
    with pytest.raises(ValueError, match=f"{path}:2: expected question, image, answer and type"):
        NaturalBench.from_files(path, tmp_path)


def test_the_repository_s_own_split_is_read(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "naturalbench" / "test_set.json"
    if not path.is_file():
        pytest.skip("REGAZE_DATA has no naturalbench/test_set.json of Baiqi-Li/NaturalBench")
    task = NaturalBench.from_files(path, tmp_path)
    assert len(task.items) == 3800
    said = {item.id: str(item.target) for item in task.items}
    assert sections(task, said)[POOLED]["g_acc"] == 1.0
