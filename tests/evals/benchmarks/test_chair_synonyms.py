"""CHAIR on classes and annotations of one's own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from chairs import TABLE, hide_nltk_data
from command_line import call, one_line
from PIL import Image
from scoring import sections

from regaze.evals.benchmarks.chair import Chair
from regaze.evals.benchmarks.chair_synonyms import SynonymFinder, load_synonyms
from regaze.evals.benchmarks.source import Source
from regaze.evals.runs import store

CLASSES = ["forklift", "traffic cone", "bus"]
ROWS = "forklift, fork lift truck, lift\n\n# a comment\ntraffic cone, cone\nbus\n"


@pytest.fixture(autouse=True)
def no_nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_nltk_data(monkeypatch)


def table(folder: Path, rows: str = ROWS) -> Path:
    path = folder / "words.txt"
    path.write_text(rows)
    return path


def annotated(folder: Path, captions: bool = False) -> list[Path]:
    """Two pictures of a yard: a forklift with a cone, and a bus; ids are text."""
    (folder / "pictures").mkdir(exist_ok=True)
    images = [{"id": f"p{number}", "file_name": f"yard {number}.png"} for number in (1, 2)]
    for image in images:
        Image.new("RGB", (4, 4)).save(folder / "pictures" / image["file_name"])
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    boxes = [("p1", 0), ("p1", 1), ("p2", 2)]
    annotations = [{"image_id": image, "category_id": one} for image, one in boxes]
    path = folder / "export.json"
    path.write_text(
        json.dumps({"images": images, "categories": categories, "annotations": annotations})
    )
    if not captions:
        return [path]
    said = folder / "said.json"
    entries = [{"image_id": "p2", "caption": "A bus behind two cones."}]
    said.write_text(json.dumps({"images": images, "annotations": entries}))
    return [path, said]


def mentioned(text: str, rows: dict[str, str]) -> list[str]:
    return [mention.name for mention in SynonymFinder(rows)(text).mentions]


def test_words_and_phrases_are_found_in_singular_and_plural(tmp_path: Path) -> None:
    rows = load_synonyms(table(tmp_path), CLASSES)
    assert rows["cone"] == rows["traffic cone"] == "traffic cone"
    text = "A bus, two Buses. Fork lift trucks lift traffic cones; a traffic light, a cone."
    assert mentioned(text, rows) == [
        *("bus", "bus", "forklift", "forklift", "traffic cone", "traffic cone"),
    ]


def test_the_longest_phrase_counts_once() -> None:
    rows = {"cone": "cone", "ice cream": "ice cream", "ice cream cone": "ice cream cone"}
    caption = SynonymFinder(rows)("an ice cream cone and ice cream")
    assert [mention.name for mention in caption.mentions] == ["ice cream cone", "ice cream"]
    assert caption.tokens == ("an", "ice cream cone", "and", "ice cream")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("forklift\ntraffic cone\n", "no row for 1 of the annotations' 3 classes: bus;"),
        (ROWS + "unicorn\n", ":6: unknown class of the annotations 'unicorn'"),
        ("forklift, cone\ntraffic cone, cones\nbus\n", ":2: 'cones' already stands for another"),
        ("forklift, cone\ntraffic cone, cone\nbus\n", ":2: 'cone' already stands for another"),
    ],
)
def test_tables_that_do_not_fit_the_classes_are_refused(
    rows: str, message: str, tmp_path: Path
) -> None:
    path = table(tmp_path, rows)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        load_synonyms(path, CLASSES)


def test_chair_runs_on_any_annotations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = annotated(tmp_path)
    task = Chair.from_coco(files, tmp_path / "pictures", synonyms=table(tmp_path))
    assert task.profile == "own/rule"
    assert [(item.id, item.image) for item in task.items] == [
        ("p1", "yard 1.png"), ("p2", "yard 2.png"),
    ]  # fmt: skip
    assert task.truth == {"p1": {"forklift", "traffic cone"}, "p2": {"bus"}}
    said = {"p1": "A lift and two cones beside a bus.", "p2": "Buses."}
    found = sections(task, said)["all"]
    assert (found["chair_s"], found["chair_i"], found["recall"]) == (1 / 2, 1 / 4, 1.0)
    assert "no reference captions" in caplog.text
    assert "holds 2 images, fewer than 500: all are taken" in caplog.text
    assert task.under("own").items == task.items
    with pytest.raises(ValueError, match="only the profile 'own/rule'"):
        task.under("opera")


def test_reference_captions_of_one_s_own_are_true_too(tmp_path: Path) -> None:
    files = annotated(tmp_path, captions=True)
    task = Chair.from_coco(files, tmp_path / "pictures", synonyms=table(tmp_path))
    assert task.truth["p2"] == {"bus", "traffic cone"}


def test_classes_of_one_s_own_need_a_table_of_one_s_own(tmp_path: Path) -> None:
    files = annotated(tmp_path, captions=True)
    with pytest.raises(ValueError, match="class 'forklift' is not in CHAIR's .* --synonyms FILE"):
        Chair.from_coco(files, tmp_path / "pictures", words=TABLE)
    with pytest.raises(ValueError, match="has one profile, 'own'"):
        Chair.from_coco(files, tmp_path / "pictures", synonyms=table(tmp_path), profile="official")


def test_classes_that_nobody_looked_for_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, said = annotated(tmp_path, captions=True)
    content = json.loads(path.read_text())
    content["categories"] = [
        {"id": n, "name": each} for n, each in enumerate(("person", "dog", "cat"))
    ]
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        Chair.from_coco([path, said], tmp_path / "pictures", words=TABLE)
    assert "nobody looked for 9 of CHAIR's 12 classes (bus, ...)" in caplog.text


def test_a_source_knows_the_table(tmp_path: Path) -> None:
    files = annotated(tmp_path)
    words = table(tmp_path)
    source = Source("chair", (str(files[0]),), str(tmp_path / "pictures"), synonyms=str(words))
    (task,) = source.tasks()
    assert task.profile == "own/rule"
    assert set(source.noted()["sha256"]) == {"export.json", "words.txt"}
    said = json.loads(json.dumps(source.to_dict()))
    assert store.restored(tmp_path, Source, said) == source


@pytest.mark.parametrize(
    ("benchmark", "option"),
    [("pope", "--synonyms"), ("pope", "--words"), ("chair", "--relabel"), ("mme", "--relabel")],
)
def test_files_that_nothing_would_read_are_refused(
    benchmark: str, option: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text("[]")
    args = ("--data", str(tmp_path / "x.json"), "--images", str(tmp_path), option, "y.txt")
    result = call("eval", benchmark, *args)
    assert result.exit_code == 2
    assert f"{option} y.txt belongs to" in one_line(result)
    result = call("eval", "chair", "--model", "sandbox", "--words", "y.txt")
    assert result.exit_code == 2
    assert "--words goes with --data" in one_line(result)


def test_a_table_that_is_not_there_is_all_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OSError, match=r"gone\.csv"):
        Chair.from_coco(annotated(tmp_path), tmp_path / "pictures", synonyms=tmp_path / "gone.csv")
    assert caplog.records == []
