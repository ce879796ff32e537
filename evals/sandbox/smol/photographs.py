"""Photographs with COCO's annotations, and POPE's questions about the kinds that COCO knows too.

``python -m regaze.evals.sandbox.smol.photographs FOLDER questions.jsonl`` writes the questions;
``regaze eval pope --model smol --data questions.jsonl --images FOLDER`` asks them. They are for
tests alone: no model here is trained on a photograph.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from regaze.evals.polling import KINDS, Record, build_questions
from regaze.evals.runs.files import write_text
from regaze.evals.sandbox.smol.scenes import NAMES

COCO_NAMES = {"ball": "sports ball"}
"""COCO's names of kinds where they differ."""
PARTS = ("train2017", "val2017")


@dataclass(frozen=True)
class Photograph:
    """A photograph and what it shows.

    Attributes:
        path: In COCO's folder.
        shares: The share of the photograph's area that the largest object of each kind takes.
    """

    path: str
    shares: Mapping[str, float]


def read_photographs(folder: Path) -> tuple[list[str], list[Photograph]]:
    """The kinds that COCO knows, and all photographs of a folder.

    Args:
        folder: Holds ``annotations/instances_*.json`` and the photographs of each part, as COCO's.

    Raises:
        OSError: A file is missing or can't be read.
    """
    kinds: list[str] = []
    found: list[Photograph] = []
    for part in PARTS:
        said = json.loads((folder / "annotations" / f"instances_{part}.json").read_text("utf-8"))
        known = {entry["name"] for entry in said["categories"]}
        kinds = [kind for kind in NAMES if COCO_NAMES.get(kind, kind) in known]
        areas = _areas(said)
        for entry in sorted(said["images"], key=lambda entry: str(entry["file_name"])):
            path = f"{part}/{entry['file_name']}"
            if (folder / path).exists():
                named = {kind: (entry["id"], COCO_NAMES.get(kind, kind)) for kind in kinds}
                shares = {kind: areas[key] for kind, key in named.items() if key in areas}
                found.append(Photograph(path, shares))
    return kinds, found


def photograph_questions(photographs: Sequence[Photograph], seed: int = 0) -> list[Record]:
    """POPE's records, one question of each sign and category about every photograph of a kind.

    The positive is the largest object's kind; frequency and co-occurrence are counted over these
    photographs, as POPE does.
    """
    truth = {
        shown.path: sorted(shown.shares, key=lambda kind: -shown.shares[kind])
        for shown in photographs
    }
    built = (build_questions(truth, kind, images=None, per_image=1, seed=seed) for kind in KINDS)
    return list(chain.from_iterable(built))


def _areas(said: Mapping[str, Any]) -> dict[tuple[int, str], float]:
    """Share of its photograph that the largest object of a class takes, by image and class."""
    names = {entry["id"]: entry["name"] for entry in said["categories"]}
    sizes = {entry["id"]: entry["width"] * entry["height"] for entry in said["images"]}
    found: dict[tuple[int, str], float] = {}
    for entry in said["annotations"]:
        key = entry["image_id"], names[entry["category_id"]]
        found[key] = max(found.get(key, 0.0), entry["area"] / sizes[entry["image_id"]])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the questions about a folder of photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as COCO's: annotations, train2017, val2017")
    parser.add_argument("out", type=Path, help="JSON lines, for --data")
    asked = parser.parse_args(arguments)
    records = photograph_questions(read_photographs(asked.folder)[1])
    write_text(asked.out, "".join(f"{json.dumps(record)}\n" for record in records))


if __name__ == "__main__":
    main()
