"""Name a file's content, for messages about files of something else than was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# What tells a benchmark's rows from the others'; those that others' rows have too come last.
_FIELDS_OF = {
    "HallusionBench": {"set_id", "figure_id", "gt_answer"},
    "MMVP": {"Index", "Options", "Correct Answer"},
    "MMHal-Bench": {"image_src", "image_content", "gt_answer"},
    "A-OKVQA": {"choices", "correct_choice_idx"},
    "TextVQA": {"image_id", "question", "answers"},
    "NaturalBench": {"Question_0", "Question_1", "Question_Type"},
    "NaturalBench (one question a row)": {"Question", "Question_Type"},
    "V*Bench (letters)": {"text", "label", "category", "question_id", "image"},
    "V*Bench (likelihood)": {"target_object", "options"},
    "OPOPE": {"image", "objects"},
    "POPE": {"image", "text", "label"},
    "AMBER": {"id", "image", "query"},
    "MME": {"question_id", "category", "question", "answer"},
    "GenEval 2": {"prompt", "vqa_list"},
    "CHAIR (COCO)": {"images", "annotations"},
    "CHAIR (captions)": {"image_id", "caption"},
    "COCO's detections": {"image_id", "category_id", "score"},
    "POPE's answers": {"question", "answer"},
}

_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: unpack or export it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"PAR1", "a Parquet table: export its rows as JSON lines"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "an SQLite database"),
)
_PICKLE = (
    "a Python pickle, such as the evaluator that CHAIR scripts keep: reading one can run any code, "
    "so it isn't read; the JSON files that it was made of are needed"
)


def looks_like(row: Mapping[str, Any]) -> str | None:
    """The benchmark that names its fields so, if one does."""
    # POPE's rows may have all fields of V*Bench's, whose labels are letters.
    if {"image", "text"} <= row.keys() and row.get("label") in ("yes", "no"):
        return "POPE"
    return next((name for name, fields in _FIELDS_OF.items() if fields <= row.keys()), None)


def described(content: object) -> str:
    """The content of parsed JSON in words, as far as it can be told."""
    if isinstance(content, list):
        if not content:
            return "an empty JSON list"
        first = content[0]
        name = looks_like(first) if isinstance(first, Mapping) else None
        if name:
            return f"a JSON list of rows of {name}"
        return f"a JSON list of {_type(first)}s, the first one {json.dumps(first):.60}"
    if not isinstance(content, Mapping):
        return f"JSON of a {_type(content)}"
    if {"images", "annotations"} <= content.keys():
        return f"COCO {_coco(content['annotations'])}"
    if name := looks_like(content):
        return f"one JSON object of {name}"
    return f"one JSON object with {', '.join(map(repr, list(content)[:6])) or 'nothing in it'}"


def no_json(data: bytes) -> str | None:
    """Name, in words, a file's content that can't be JSON; None if it may be.

    Args:
        data: The file's content or its beginning.
    """
    if re.match(rb"\x80[\x02-\x05]", data):
        return _PICKLE
    for mark, said in _MAGIC:
        if data.startswith(mark):
            return said
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP picture"
    if data[:2] == b"BM" and data[6:10] == bytes(4):
        return "a BMP picture"
    text = data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text:
        return None
    if text.startswith("version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself: run git lfs pull"
    if text[0] == "<":
        return _markup(text)
    # A word or a digit may begin JSON, but neither these files nor their lines.
    return _table(text) if text[0] not in "[{" else None


def _coco(entries: object) -> str:
    first = entries[0] if isinstance(entries, list) and entries else {}
    if not isinstance(first, Mapping):
        return "annotations"
    if "caption" in first:
        return "captions"
    if "segments_info" in first:
        return "panoptic annotations"
    if "keypoints" in first:
        return "keypoints"
    return "instances" if "category_id" in first else "annotations"


def _markup(text: str) -> str:
    start = text[:2000].lower()
    if "<html" in start or "<!doctype html" in start:
        return "a web page, perhaps the one that shows the file: download the file itself"
    if "<svg" in start:
        return "an SVG picture"
    if re.search(r"<annotation\b", start):
        return "a Pascal-VOC annotation (XML)"
    return "XML"


def _table(text: str) -> str | None:
    lines = [line for line in text.splitlines()[:3] if line.strip()]
    if all(re.fullmatch(r"\d+(\s+[\d.e+-]+){4,}\s*", line) for line in lines):
        return "a file of YOLO labels"
    for mark, name in ((",", "CSV"), ("\t", "TSV")):
        if len(lines) > 1 and all(mark in line for line in lines):
            return f"a table ({name}) that begins with {lines[0]!r:.60}"
    return None


def _type(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return next((said for kind, said in names.items() if isinstance(value, kind)), "number")
