"""Photographs with COCO's annotations: what is read of them, and what is asked."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from regaze.evals.sandbox.smol.photographs import (
    PARTS,
    Photograph,
    main,
    photograph_questions,
    read_photographs,
)


def coco(folder: Path) -> Path:
    """A folder as COCO's, of two photographs in the second part and one that isn't there."""
    categories = [{"id": i, "name": n} for i, n in enumerate(["dog", "sports ball", "sink", "bus"])]
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        rows: list[dict[str, object]] = []
        images: list[dict[str, object]] = []
        if part == "val2017":
            for number in (2, 1, 3):
                name = f"{number}.jpg"
                images.append({"id": number, "file_name": name, "width": 40, "height": 50})
                if number < 3:
                    Image.new("RGB", (40, 50)).save(folder / part / name)
            areas = ((1, 0, 100), (1, 0, 300), (1, 1, 500), (1, 2, 900), (2, 3, 50), (3, 0, 9))
            rows = [
                {"id": i, "image_id": image, "category_id": category, "area": area}
                for i, (image, category, area) in enumerate(areas)
            ]
        said = {"images": images, "categories": categories, "annotations": rows}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(said))
    return folder


def test_the_largest_object_of_each_kind_that_both_know_counts(tmp_path: Path) -> None:
    kinds, shown = read_photographs(coco(tmp_path))
    assert kinds == ["dog", "ball", "bus"]
    assert shown == [
        Photograph("val2017/1.jpg", {"dog": 0.15, "ball": 0.25}),
        Photograph("val2017/2.jpg", {"bus": 0.025}),
    ]


def test_questions_ask_for_the_largest_and_tell_the_truth(tmp_path: Path) -> None:
    shown = read_photographs(coco(tmp_path / "coco"))[1]
    records = photograph_questions(shown)
    assert len(records) == 3 * 2 * len(shown)
    for record in records:
        (of,) = (each for each in shown if each.path == record["image"])
        kind = str(record["text"]).removeprefix("Is there a ").removesuffix(" in the image?")
        assert (kind in of.shares) == (record["label"] == "yes")
    assert [r["text"] for r in records if r["label"] == "yes"][:2] == [
        "Is there a ball in the image?",
        "Is there a bus in the image?",
    ]
    main([str(tmp_path / "coco"), str(tmp_path / "questions.jsonl")])
    lines = (tmp_path / "questions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records
