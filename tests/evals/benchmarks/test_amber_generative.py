from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nltk
import numpy as np
import pytest
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks import amber_words
from regaze.evals.benchmarks.amber_generative import AmberGenerative
from regaze.evals.benchmarks.amber_words import (
    Vocabulary,
    count_objects,
    nltk_nouns,
    spacy_similarity,
)
from regaze.evals.task import QuestionTask

RELATED = {
    "sky": ["air"],
    "forest": ["tree", "leaf"],
    "tree": ["leaf"],
    "dog": ["puppy"],
    "table": ["desk"],
    "cat": [],
    "chair": ["seat"],
    "cloud": [],
}
WORDS = Vocabulary(RELATED, frozenset({"light", "seat"}))
LIKE = {
    frozenset(pair): value
    for pair, value in {
        ("puppy", "cat"): 0.9,
        ("cat", "dog"): 0.85,
        ("desk", "chair"): 0.81,
        ("air", "cloud"): 0.95,
        ("table", "chair"): 0.8,
    }.items()
}
OBJECTS = [
    (["forest", "tree"], ["dog", "cloud"]),
    (["sky"], ["cat", "dog"]),
    (["table", "dog"], ["chair"]),
    (["cat"], ["cloud", "sky"]),
]
SAID = [
    "tree leaf house puppy",
    "sky cat cat moon",
    "desk seat chair puppy puppy",
    "air cloud light dog",
    "",
    "forest tree dog cat",
    "cloud sky table",
    "chair",
]


def blank(key: str) -> Image.Image:
    return Image.new("RGB", (1, 1))


def like(one: str, other: str) -> float:
    return 1.0 if one == other else LIKE.get(frozenset((one, other)), 0.0)


def record(number: int = 0, **fields: Any) -> dict[str, Any]:
    truth, hallu = OBJECTS[number % 4]
    row = {"id": number + 1, "image": f"AMBER_{number + 1}.jpg", "query": "Describe this image."}
    return {**row, "truth": truth, "hallu": hallu, **fields}


def made(count: int = 8, words: Vocabulary = WORDS) -> AmberGenerative:
    rows = [record(number) for number in range(count)]
    return AmberGenerative.from_records(rows, blank, words, nouns=str.split, similar=like)


# Scores


# What the official script printed for these descriptions, all together and one by one.
@pytest.mark.parametrize(
    ("said", "printed"),
    [
        (range(8), (54.5, 50.0, 75.0, 57.1)),
        ([0], (33.3, 50.0, 100.0, 50.0)),
        ([1], (66.6, 99.9, 100.0, 100.0)),
        ([2], (0.0, 100.0, 0.1, 99.9)),
        ([3], (66.6, 99.9, 100.0, 100.0)),
        ([4], (0.0, 0.0, 0.1, 0.0)),
        ([5], (100.0, 0.0, 100.0, 100.0)),
        ([6], (66.6, 50.0, 100.0, 0.0)),
    ],
)
def test_it_gives_what_the_official_script_prints(
    said: range | list[int], printed: tuple[float, ...]
) -> None:
    found = sections(made(), {str(i + 1): SAID[i] for i in said})["all"]
    shown = tuple(round(100 * found[name], 9) for name in ("chair", "cover", "hal", "cog"))
    assert shown == printed


def count(nouns: str, truth: list[str], hallu: list[str]) -> dict[str, int]:
    return count_objects(nouns.split(), truth, hallu, WORDS, like)


def test_an_associated_word_credits_the_first_object_it_stands_for() -> None:
    assert count("tree", ["forest", "tree"], [])["covered"] == 1
    assert count("tree leaf forest", ["forest", "tree"], [])["covered"] == 1
    assert count("tree leaf", ["tree", "forest"], [])["covered"] == 2


def test_a_noun_of_the_truth_is_no_expected_hallucination() -> None:
    assert count("leaf", ["tree"], ["forest"])["expected"] == 0
    assert count("leaf", ["sky"], ["forest"])["expected"] == 1


def test_unknown_nouns_are_ignored_and_safe_ones_only_counted() -> None:
    found = count("house seat moon", ["sky"], [])
    assert (found["nouns"], found["hallucinated"], found["clean"]) == (1, 0, 1)


def test_a_noun_like_one_of_the_truth_is_fine_even_if_expected_to_be_hallucinated() -> None:
    found = count("cat", ["dog"], ["cat"])
    assert (found["hallucinated"], found["covered"], found["expected"]) == (0, 1, 1)
    found = count("table", ["chair"], [])
    assert (found["hallucinated"], found["covered"]) == (1, 0), "0.8 is not above 0.8"


def test_one_noun_can_be_two_expected_hallucinations() -> None:
    assert count("cat", ["sky"], ["dog", "cat"])["expected"] == 2


def test_likeness_is_asked_only_until_the_first_match() -> None:
    asked: list[tuple[str, str]] = []

    def similar(one: str, other: str) -> float:
        asked.append((one, other))
        return 1.0

    count_objects(["cat"], ["sky", "dog"], ["chair", "table"], WORDS, similar)
    assert asked == [("cat", "seat"), ("cat", "air")]


def test_length_and_emptiness_are_counted() -> None:
    found = sections(made(), {"1": "a b c", "2": " "})["all"]
    assert (found["words"], found["empty"]) == (1.5, 0.5)


def test_every_metric_has_a_direction_and_counts_keep_their_keys() -> None:
    task = made()
    assert list(task.directions) == list(sections(task, {"1": "dog"})["all"])
    assert len({tuple(task.counts(task.items[0], text)) for text in ("dog", "")}) == 1


# Reading


def write(folder: Path) -> Path:
    (folder / "query").mkdir()
    rows = [{**record(i), "type": "generative"} for i in range(2)]
    rows.append({"id": 3, "image": "a.jpg", "query": "?", "type": "relation", "truth": "no"})
    for name in ("annotations.json", "query/query_all.json"):
        (folder / name).write_text(json.dumps(rows))
    (folder / "relation.json").write_text(json.dumps(RELATED, indent=4))
    (folder / "safe_words.txt").write_text("light\nseat")
    return folder


def test_files_read_like_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regaze.evals.benchmarks.amber_generative.nltk_nouns", lambda: str.split)
    monkeypatch.setattr(
        "regaze.evals.benchmarks.amber_generative.spacy_similarity", lambda vectors: like
    )
    task = AmberGenerative.from_files(write(tmp_path), tmp_path)
    assert task.items == made(2).items
    assert task.vocabulary == WORDS
    assert sections(task, {"1": SAID[0], "2": SAID[1]}) == sections(
        made(2), {"1": SAID[0], "2": SAID[1]}
    )


def test_a_vocabulary_of_something_else_is_named(tmp_path: Path) -> None:
    for content, message in (("[]", " is not.*table of associated words"), ("{", ":1: malformed")):
        (tmp_path / "relation.json").write_text(content)
        with pytest.raises(ValueError, match=rf"relation\.json{message}"):
            Vocabulary.from_files(tmp_path)


def test_an_object_that_the_vocabulary_lacks_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match="table of associated words has no object 'sky'"):
        made(words=Vocabulary({"forest": [], "tree": [], "dog": [], "cloud": []}, frozenset()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truth": "yes"}, "row 0: truth must be a list of objects, not 'yes'"),
        ({"hallu": None}, "row 0: no generative AMBER question, it lacks hallu"),
    ],
)
def test_odd_rows_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AmberGenerative.from_records(
            [record(**fields)], blank, WORDS, nouns=str.split, similar=like
        )


def test_there_is_one_profile() -> None:
    assert made().under("official").profile == "official"
    with pytest.raises(
        ValueError, match="amber-generative has only the profile 'official', not 'yesno'"
    ):
        made().under("yesno")


# Optional packages


def test_without_spacy_or_its_vectors_one_line_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"^AMBER.*pip install spacy.*en_core_web_lg$"):
        spacy_similarity()


def test_without_nltk_data_one_line_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(text: str) -> list[str]:
        raise LookupError("Resource punkt_tab not found.\n" * 9)

    monkeypatch.setattr(nltk, "word_tokenize", absent)
    with pytest.raises(FileNotFoundError, match=r"^AMBER.*nltk\.downloader.*") as error:
        nltk_nouns()
    assert "\n" not in str(error.value)


def test_nouns_are_singular_and_keep_their_case() -> None:
    try:
        find = nltk_nouns()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert find("The dogs sleep near two tables.") == ["dog", "table"]


def test_word_vectors_of_spacy(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    for word, vector in (("dog", (1.0, 0.0)), ("puppy", (1.0, 0.1)), ("table", (0.0, 1.0))):
        pipeline.vocab.set_vector(word, np.array(vector))
    pipeline.to_disk(tmp_path)
    similar = spacy_similarity(tmp_path)
    assert similar("dog", "puppy") > amber_words.SIMILAR > similar("dog", "table")
    assert (similar("dog", "dog"), similar("unseen", "dog")) == (1.0, 0.0)


def test_it_is_a_task() -> None:
    task: QuestionTask = made()
    assert (task.name, task.profile, task.yes_no) == ("amber-generative", "official", False)
    assert task.items[0].prompt == "Describe this image."
