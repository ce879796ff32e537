from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regaze.evals.benchmarks.aokvqa import AOkvqa
from regaze.evals.benchmarks.opope import Opope
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.rows import arrange, require
from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.task import Item


def test_items_of_one_image_and_of_one_cluster_become_neighbours() -> None:
    items = [
        Item("1", "a", "?", cluster="x"),
        Item("2", "c", "?", cluster="y"),
        Item("3", "b", "?", cluster="x"),
        Item("4", "a", "?", cluster="x"),
        Item("5", None, "?", cluster="y"),
    ]
    assert [i.id for i in arrange((i.id, i) for i in items)] == ["1", "4", "3", "2", "5"]


def test_a_repeated_question_is_named_with_both_places() -> None:
    with pytest.raises(ValueError, match="b:7: question 1 is already at a:3"):
        arrange([("a:3", Item("1", "a", "?")), ("b:7", Item("1", "b", "?"))])


def test_a_row_of_something_else_is_told_by_what_it_has() -> None:
    require("f:1", {"a": 0, "b": ""}, ("a", "b"), "Toy")
    with pytest.raises(ValueError, match=r"^f:1: no Toy question, it lacks b, c \(it has a, b\)$"):
        require("f:1", {"a": 0, "b": None}, ("a", "b", "c"), "Toy")
    with pytest.raises(ValueError, match="it has nothing"):
        require("f:1", {}, ("a",), "Toy")


POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
AOKVQA = {
    **{"question_id": "q", "image_id": 1, "question": "What?", "choices": list("abcd")},
    **{"correct_choice_idx": 1, "direct_answers": ["b"] * 10},
}
TEXTVQA = {"question_id": 1, "image_id": "1", "question": "What?", "answers": ["x"] * 10}
OPOPE = {"image": "1.jpg", "objects": ["dog", "cat", "cup"]}


def textvqa(path: Path) -> None:
    path.write_text(json.dumps({"data": [json.loads(path.read_text())]}))
    TextVqa.from_files(path, path.parent)


READERS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "POPE": (POPE, lambda path: Pope.from_files([path], path.parent)),
    "A-OKVQA": (AOKVQA, lambda path: AOkvqa.from_files(path, path.parent)),
    "TextVQA": (TEXTVQA, textvqa),
    "OPOPE": (OPOPE, lambda path: Opope.from_files(path, path.parent)),
}


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("POPE", "text", ["a", "b"], r"text must be text, not \['a', 'b'\]"),
        ("POPE", "text", {"a": 1}, r"text must be text, not \{'a': 1\}"),
        ("POPE", "text", 5, "text must be text, not 5"),
        ("POPE", "text", " ", "text must be text, not ' '"),
        ("POPE", "image", 5, "image must be text, not 5"),
        ("POPE", "question_id", [1], r"question_id must be text or a whole number, not \[1\]"),
        ("POPE", "question_id", True, "question_id must be text or a whole number, not True"),
        ("POPE", "question_id", 1.5, r"question_id must be text or a whole number, not 1\.5"),
        ("POPE", "category", 7, "category must be text, not 7"),
        ("A-OKVQA", "question", 5, "question must be text, not 5"),
        ("A-OKVQA", "choices", 5, "choices must be a list of texts, not 5"),
        ("A-OKVQA", "choices", "abcd", "choices must be a list of texts, not 'abcd'"),
        ("A-OKVQA", "choices", [[], {}, 1, 2], r"choices must be a list of texts, not \[\[\], "),
        ("A-OKVQA", "correct_choice_idx", True, "a correct_choice_idx from 0 to 3 .* and True"),
        ("A-OKVQA", "direct_answers", 5, "direct_answers must be a list, not 5"),
        ("TextVQA", "answers", 5, "answers must be a list of ten, not 5"),
        ("TextVQA", "answers", {"a": 1}, "answers must be a list of ten"),
        ("TextVQA", "image_id", None, "lacks image_id"),
        ("OPOPE", "objects", 5, "objects must be a list of texts, not 5"),
        ("OPOPE", "objects", [None], r"objects must be a list of texts, not \[None\]"),
    ],
)
def test_fields_of_the_wrong_kind_are_named_with_file_and_line(
    name: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    row, read = READERS[name]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**row, field: value}))
    with pytest.raises(ValueError, match=f"^{path}:1.*{message}"):
        read(path)


@pytest.mark.parametrize("name", READERS)
def test_the_same_rows_are_read_where_nothing_is_wrong(name: str, tmp_path: Path) -> None:
    row, read = READERS[name]
    Image.new("RGB", (2, 2)).save(tmp_path / "1.jpg")
    path = tmp_path / "x.json"
    path.write_text(json.dumps(row))
    if name == "OPOPE":  # One picture has all the objects there are, so none is absent.
        with pytest.raises(ValueError, match="only 1 of 1 images"):
            read(path)
    else:
        read(path)
