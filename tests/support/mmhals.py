"""MMHal-Bench in small, and replies as its judge gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from regaze.evals.benchmarks.mmhal import MmHal

Row = dict[str, Any]
KINDS = ("attribute", "counting")


def row(number: int, **fields: Any) -> Row:
    truth = {"image_content": ["cat", "sofa"], "gt_answer": "two", "model_answer": ""}
    place = {"image_src": f"https://host/x/{number}.jpg", "image_id": str(number)}
    return {"question_type": KINDS[number % 2], "question": f"How many, {number}?", **place} | (
        truth | fields
    )


def reply(text: str, model: str = "gpt-4-0314") -> Row:
    return {"model": model, "created": 1, "choices": [{"message": {"content": text}}]}


def release(folder: Path, count: int = 4) -> MmHal:
    path = folder / "response_template.json"
    path.write_text(json.dumps([row(number) for number in range(1, count + 1)]))
    for number in range(1, count + 1):
        Image.new("L", (2, 2), 9).save(folder / f"{number}.jpg")
    return MmHal.from_files(path, folder)
