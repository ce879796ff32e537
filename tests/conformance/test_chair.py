"""CHAIR gives what the published scripts gave on hand-made captions and annotations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regaze.evals.benchmarks.chair import Chair, count_mentions
from regaze.evals.benchmarks.chair_tokens import best_sentences, require_nltk_data
from regaze.evals.benchmarks.chair_words import Caption, find_mentions
from regaze.evals.benchmarks.singularize import singularize
from regaze.evals.task import Counts

FOLDER = Path(
    os.environ.get("REGAZE_CONFORMANCE") or Path(__file__).parents[1] / "data" / "conformance"
)
DATA: dict[str, Any] = json.loads((FOLDER / "chair.json").read_text(encoding="utf-8"))
EDGES: dict[str, dict[str, Any]] = DATA["edge_sets"]
CAPTIONS: list[dict[str, Any]] = DATA["captions"]
SCRIPTS = {
    script: profile
    for script, profile in (
        ("original", "official"),
        ("standalone", "official"),
        ("opera", "opera"),
        ("pai", "opera"),
    )
    if script in DATA["results"]
}
# Per sentence and overall the same names; Len is tokens / 100.
METRICS = {
    "CHAIRs": "chair_s",
    "CHAIRi": "chair_i",
    "Recall": "recall",
    "Precision": "precision",
    "F1": "f1",
}


def rows(script: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DATA["results"][script]["sentences"]
    return found


def word_table() -> dict[str, str]:
    """Every word that some script matched, and the class names: no table file is needed."""
    table = {c["name"]: c["name"] for c in DATA["categories"]}
    for script in SCRIPTS:
        for row in rows(script):
            table.update(row["matched"])
    return table


@pytest.fixture(params=list(SCRIPTS))
def script(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tasks() -> dict[str, Chair]:
    return {}


@pytest.fixture
def task(script: str, tasks: dict[str, Chair], tmp_path_factory: pytest.TempPathFactory) -> Chair:
    """The task under a script's profile, read from COCO files made of the stored annotations."""
    profile = SCRIPTS[script]
    if profile == "opera":
        try:
            require_nltk_data()
        except FileNotFoundError as error:
            pytest.skip(str(error))
    if profile not in tasks:
        tasks[profile] = coco_task(profile, tmp_path_factory.mktemp(profile))
    return tasks[profile]


def coco_task(profile: str, folder: Path) -> Chair:
    image_folder = folder / "images"
    image_folder.mkdir()
    ids = {c["name"]: c["id"] for c in DATA["categories"]}
    files = []
    for split in ("train", "val"):
        images = {int(k): v for k, v in DATA["images"].items() if v["split"] == split}
        for image in images:
            (image_folder / f"COCO_{split}2014_{image:012}.jpg").touch()
        instances = [
            {"image_id": image, "category_id": ids[name]}
            for image, entry in images.items()
            for name in entry["instances"]
        ]
        captions = [
            {"image_id": image, "caption": text}
            for image, entry in images.items()
            for text in entry["captions"]
        ]
        listed = [{"id": image} for image in images]
        for kind, content in (
            ("instances", {"categories": DATA["categories"], "annotations": instances}),
            ("captions", {"annotations": captions}),
        ):
            path = folder / f"{kind}_{split}2014.json"
            path.write_text(json.dumps({"images": listed, **content}))
            files.append(path)
    return Chair.from_coco(
        files, folder / "images", words=word_table(), profile=profile, count=None
    )


def answer_counts(task: Chair, captions: Sequence[dict[str, Any]]) -> list[Counts]:
    items = {item.id: item for item in task.items}
    return [task.counts(items[str(c["image_id"])], c["caption"]) for c in captions]


def metrics(task: Chair, counts: Sequence[Counts]) -> dict[str, float]:
    sums = {key: np.array(float(sum(row[key] for row in counts))) for key in counts[0]}
    return {name: float(value) for name, value in task.metrics(sums).items()}


def stored_task() -> Chair:
    """A task whose arithmetic is used on its own."""
    return Chair.from_truth({"any": []}, lambda text: [], lambda key: pytest.fail(key))


def test_every_word_of_the_table_gets_the_singular_that_pattern_gives() -> None:
    table: dict[str, str] = DATA["singularize_table"]
    assert {word: singularize(word) for word in table} == table


def test_images_have_the_objects_that_the_script_found(script: str, task: Chair) -> None:
    for caption, row in zip(CAPTIONS, rows(script), strict=True):
        assert sorted(task.truth[str(caption["image_id"])]) == row["gt"]


def test_captions_mention_the_objects_that_the_script_found(script: str, task: Chair) -> None:
    for caption, row in zip(CAPTIONS, rows(script), strict=True):
        found = task.find(caption["caption"])
        assert [[m.word, m.name] for m in found.mentions] == row["matched"]
        assert [m.name for m in found.mentions] == row["generated"]


def test_captions_have_the_tokens_of_the_script(script: str, task: Chair) -> None:
    for caption, row in zip(CAPTIONS, rows(script), strict=True):
        if best_sentences() == "rule" and "mr. " in caption["caption"].lower():
            continue  # the rule takes the abbreviation for the end of a sentence
        assert list(task.find(caption["caption"]).tokens) == row["words"]


def test_each_caption_scores_as_in_the_script(script: str, task: Chair) -> None:
    counted = answer_counts(task, CAPTIONS)
    for counts, row in zip(counted, rows(script), strict=True):
        check_sentence(metrics(task, [counts]), row["metrics"])


def test_all_captions_together_score_as_in_the_script(script: str, task: Chair) -> None:
    overall = DATA["results"][script]["overall"]
    check_overall(metrics(task, answer_counts(task, CAPTIONS)), overall)


@pytest.mark.parametrize(
    ("name", "script"),
    [(name, script) for name in EDGES for script in SCRIPTS if script in EDGES[name]],
)
def test_edge_sets_score_as_in_the_script(name: str, script: str, task: Chair) -> None:
    expected = EDGES[name][script]
    found = metrics(task, answer_counts(task, EDGES[name]["captions"]))
    if "error" in expected:
        assert expected["error"] == "ZeroDivisionError"
        assert np.isnan(found["chair_i"])
    else:
        check_overall(found, expected)


def test_stored_tokens_give_the_mentions_of_the_script(script: str) -> None:
    table = word_table()
    for row in rows(script):
        found = find_mentions(row["words"], table)
        assert [[m.word, m.name] for m in found] == row["matched"]


def test_stored_tokens_score_as_in_the_script(script: str) -> None:
    task, table = stored_task(), word_table()
    counted = []
    for row in rows(script):
        caption = Caption(tuple(row["words"]), find_mentions(row["words"], table))
        counts = {**count_mentions(caption, set(row["gt"])), "empty": int(not row["words"])}
        assert counts["hallucinated"] == len(row["hallucinated"])
        check_sentence(metrics(task, [counts]), row["metrics"])
        counted.append(counts)
    check_overall(metrics(task, counted), DATA["results"][script]["overall"])


def check_sentence(found: dict[str, float], expected: dict[str, float]) -> None:
    """Per sentence the scripts write 0 where a denominator is zero; Len is always 0 there."""
    for theirs, ours in METRICS.items():
        if theirs in expected:
            value = 0.0 if np.isnan(found[ours]) else found[ours]
            assert value == pytest.approx(expected[theirs], abs=1e-12)


def check_overall(found: dict[str, float], expected: dict[str, float]) -> None:
    for theirs, ours in METRICS.items():
        if theirs in expected:
            assert found[ours] == pytest.approx(expected[theirs], abs=1e-12)
    if "Len" in expected and best_sentences() == "punkt":
        assert found["words"] / 100 == pytest.approx(expected["Len"], abs=1e-12)
