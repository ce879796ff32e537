"""POPE gives what the published scripts gave on hand-made answers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.pope_profiles import PROFILES

FOLDER = Path(
    os.environ.get("REGAZE_CONFORMANCE") or Path(__file__).parents[1] / "data" / "conformance"
)
DATA: dict[str, Any] = json.loads((FOLDER / "pope.json").read_text(encoding="utf-8"))
ITEMS: dict[int, dict[str, Any]] = {item["id"]: item for item in DATA["items"]}
SCRIPTS = {
    "official": "official",
    "llava": "official",
    "opera": "opera",
    "vcd": "vcd",
    "clearsight": "clearsight",
    "lmms_eval": "lmms",
    "vlmevalkit": "vlmevalkit",
}
# What the scripts call the metrics, with their misspellings.
METRICS = {
    "Accuracy": "accuracy",
    "Accurancy": "accuracy",
    "accuracy": "accuracy",
    "Precision": "precision",
    "precision": "precision",
    "Recall": "recall",
    "recall": "recall",
    "F1 score": "f1",
    "F1": "f1",
    "F1_score": "f1",
    "f1_score": "f1",
    "Yes ratio": "yes_ratio",
    "yes": "yes_ratio",
    "yes_ratio": "yes_ratio",
}
PERCENT = {"Overall": "f1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
SETS: dict[str, dict[str, Any]] = DATA["sets"]
CASES = [(name, script) for name in SETS for script in SCRIPTS if script in SETS[name]]


def build(name: str, script: str) -> tuple[Pope, dict[str, str]]:
    """The task of one set under a script's profile, and the answers to it."""
    chosen = [ITEMS[number] for number in SETS[name]["item_ids"]]
    records = [
        {"question_id": i["id"], "image": f"{i['id']}.jpg", "text": "?", "label": i["label"]}
        for i in chosen
    ]
    task = Pope.from_records(records, lambda key: pytest.fail(key), profile=SCRIPTS[script])
    return task, {f"all/{i['id']}": i["answer"] for i in chosen}


def totals(task: Pope, answers: dict[str, str]) -> dict[str, float]:
    counted = [task.counts(item, answers[item.id]) for item in task.items]
    return {key: sum(row[key] for row in counted) for key in counted[0]}


def metrics(task: Pope, sums: dict[str, float]) -> dict[str, float]:
    found = task.metrics({key: np.array(float(value)) for key, value in sums.items()})
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize(("name", "script"), CASES)
def test_every_answer_is_read_as_by_the_script(name: str, script: str) -> None:
    task, answers = build(name, script)
    stored = SETS[name][script]
    verdicts = [PROFILES[task.profile].verdict(answers[i.id], i.target) for i in task.items]
    if "per_item" in stored:
        words = {1: "yes", 0: "no", "Yes": "yes", "No": "no", "Unknown": "other"}
        assert verdicts == [words[value] for value in stored["per_item"]]
    elif "per_item_cell" in stored:
        counted = [task.counts(item, answers[item.id]) for item in task.items]
        cells = [cell.lower() for cell in stored["per_item_cell"]]
        assert [row[cell] for row, cell in zip(counted, cells, strict=True)] == [1] * len(cells)
    else:
        plain = {"yes": "yes", "no": "no"}
        assert verdicts == [plain.get(v, "other") for v in stored["per_item_prediction"]]
        correct = [task.counts(item, answers[item.id])["correct"] for item in task.items]
        assert correct == stored["per_item_score"]


@pytest.mark.parametrize(("name", "script"), CASES)
def test_the_set_scores_as_the_script_prints(name: str, script: str) -> None:
    task, answers = build(name, script)
    stored = SETS[name][script]
    sums = totals(task, answers)
    found = metrics(task, sums)
    if script == "vlmevalkit":
        expected = {PERCENT[k]: v / 100 for k, v in stored["aggregate"].items() if k in PERCENT}
    else:
        printed = stored.get("printed") or stored.get("aggregate") or {}
        for cell in ("TP", "FP", "TN", "FN"):
            assert sums[cell.lower()] == printed.get(cell, sums[cell.lower()])
        expected = {METRICS[k]: v for k, v in printed.items() if k in METRICS}
    for metric, value in expected.items():
        # lmms-eval and VLMEvalKit print 0 where a denominator is zero.
        assert found[metric] == pytest.approx(value, abs=1e-12) or (
            math.isnan(found[metric]) and value == 0 and script in ("lmms_eval", "vlmevalkit")
        )
    if stored.get("error"):
        assert stored["error"] == "ZeroDivisionError"
        assert math.isnan(found["f1"])
