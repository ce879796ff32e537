"""Files of something else are called what they are, in one line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regaze.evals.benchmarks.chair import Chair
from regaze.evals.benchmarks.kinds import described, no_json
from regaze.evals.benchmarks.pope import Pope

COCO = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "dog"}]}
INSTANCES = {**COCO, "annotations": [{"image_id": 1, "category_id": 1}]}
QUESTION = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a", "b")
    return file.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "pickle": (b"\x80\x04\x95\x0e\0\0\0", "a Python pickle.*so it isn't read"),
    **{
        kind: (picture(kind), f"a {told} picture")
        for kind, told in (
            ("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("BMP", "BMP"), ("WEBP", "WebP"),
            ("TIFF", "TIFF"),
        )
    },
    "zip": (archive(), "a ZIP archive or a spreadsheet: unpack or export it"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "a gzip archive: unpack it"),
    "csv": (b"image,object\na.jpg,dog\n", r"a table \(CSV\) that begins with 'image,object'"),
    "quoted": (b'"image","object"\n"a.jpg","dog"\n', r"a table \(CSV\)"),
    "tsv": (b"image\tobject\na.jpg\tdog\n", r"a table \(TSV\)"),
    "voc": (b"<annotation><filename>a.jpg</filename></annotation>", "a Pascal-VOC annotation"),
    "xml": (b"<?xml version='1.0'?>\n<root/>", "XML"),
    "html": (b"<!DOCTYPE html>\n<html>", "a web page, .*download the file itself"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
    "yolo": (b"0 0.5 0.5 0.1 0.1\n2 0.1 0.2 0.3 0.4\n", "a file of YOLO labels"),
    "parquet": (b"PAR1....", "a Parquet table"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_json_is_named_by_its_content(name: str, tmp_path: Path) -> None:
    content, told = FOREIGN[name]
    path = tmp_path / "val.json"
    path.write_bytes(content)
    for read in (
        lambda: Pope.from_files([path], tmp_path),
        lambda: Chair.from_coco([path], tmp_path, words={}),
    ):
        with pytest.raises(ValueError, match=f"^{path} is {told}") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert "malformed" not in str(caught.value)


@pytest.mark.parametrize("start", ["{", "[", " {", "\ufeff{", '"x', "nonsense", "12", "BMW"])
def test_what_may_be_json_is_left_to_its_reader(start: str) -> None:
    assert no_json(start.encode()) is None


JSON: list[tuple[Any, str]] = [
    (INSTANCES, "COCO instances"),
    ({**COCO, "annotations": [{"image_id": 1, "caption": "A dog."}]}, "COCO captions"),
    ({**COCO, "annotations": [{"image_id": 1, "segments_info": []}]}, "COCO panoptic annotations"),
    ({**COCO, "annotations": [{"category_id": 1, "keypoints": []}]}, "COCO keypoints"),
    ([{"image_id": 1, "category_id": 2, "score": 0.5}], "a JSON list of rows of COCO's detections"),
    ([QUESTION], "a JSON list of rows of POPE"),
    ([{**QUESTION, "category": "random"}], "a JSON list of rows of POPE"),
    (
        [{**QUESTION, "category": "spatial", "label": "A"}],
        "a JSON list of rows of V*Bench (letters)",
    ),
    (["Is there a dog?"], 'a JSON list of texts, the first one "Is there a dog?"'),
    ([[1, 2]], "a JSON list of lists, the first one [1, 2]"),
    ([], "an empty JSON list"),
    (QUESTION, "one JSON object of POPE"),
    ({"info": 1, "runs": 2}, "one JSON object with 'info', 'runs'"),
    (None, "JSON of a null"),
    (3, "JSON of a number"),
]


@pytest.mark.parametrize(("content", "told"), JSON)
def test_json_of_something_else_is_described(content: Any, told: str) -> None:
    assert described(content) == told


@pytest.mark.parametrize("indent", [None, 2])
def test_annotations_given_as_questions_say_how_to_build_some(
    tmp_path: Path, indent: int | None
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(INSTANCES, indent=indent))
    with pytest.raises(ValueError, match=f"{path}:1: no POPE question.*regaze build pope"):
        Pope.from_files([path], tmp_path)


def test_questions_given_as_annotations_are_told(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text("\n".join(json.dumps({**QUESTION, "question_id": i}) for i in (1, 2)))
    with pytest.raises(ValueError, match=f"{path} is JSON lines, .* one JSON object of POPE"):
        Chair.from_coco([path], tmp_path, words={})
    path.write_text(json.dumps([QUESTION]))
    with pytest.raises(ValueError, match=f"{path} is a JSON list of rows of POPE, no COCO"):
        Chair.from_coco([path], tmp_path, words={})
