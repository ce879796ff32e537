"""Scores of made-up runs, for tests of everything that shows scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from popes import pope
from toy import ToyTask

from regaze.evals.runs.controls import roles
from regaze.evals.runs.cost import Cost
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import Answers, RunResult
from regaze.evals.scoring.score_run import score_run
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.task import Task


def fired(label: str, acted: bool = True) -> dict[str, Any]:
    """A session's notes on an intervention in two layers."""
    layers = [{"layer": n, "calls": 3, "heads": 1.0, "effect": 0.25 * n * acted} for n in (0, 1)]
    one = {"label": label, "prompts": 18, "layers": layers, "exempt": False}
    return {"fired": acted, "interventions": [{**one, "fired": acted, "effect": 0.125 * acted}]}


def run(task: Task, *answers: Answers) -> RunResult:
    """A run of a task; the first answers are the unedited model's."""
    controls = roles([each.label for each in answers])
    return RunResult(task, task.items, answers, Path("runs/x"), controls)


def manifest(label: str) -> dict[str, Any]:
    """As little of a manifest as scores and reports need."""
    cost = Cost(
        items=240, seconds=12.0, prompt_tokens=9000, prefill_s=9.0, forwards=120, columns=80
    )
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "device": "cpu",
        "packages": {"regaze": "0"},
        "firing": None if label.startswith("none") else fired(label.partition("+")[0]),
        "cost": cost.to_dict(),
    }
    return {
        "model": "models/toy",
        "config": {"dtype": "float32", "interventions": [], "decoding": {"max_new_tokens": 4}},
        "config_sha256": label,
        "sessions": [session],
        "apart": "it has its reasons" if label.startswith("vhr") else None,
    }


def toy_scores(truncated: bool = False) -> TaskScores:
    """The toy task, all wrong without and all right with an intervention."""
    task = ToyTask(images=3)
    finish = "length" if truncated else "eos"
    answers = [
        Answers(
            label,
            {i.id: Record(i.id, i.cluster, text, finish=finish) for i in task.items},  # type: ignore[arg-type]
            manifest(label),
        )
        for label, text in (("none", "no"), ("vhr:alpha=4", "star"))
    ]
    return score_run(run(task, *answers), title="Toy questions", draws=200)


def pope_run(seeds: int = 1, images: int = 60) -> RunResult:
    """POPE under a method that only moves the threshold, one that ranks better, and controls."""
    task = pope(images, load=lambda key: Image.new("RGB", (16, 16), "teal"))
    rng = np.random.default_rng(0)
    yes = {item.id: item.target == "yes" for item in task.items}
    noise = {key: float(rng.normal()) for key in yes}
    before = {key: right - 0.9 + 0.4 * noise[key] for key, right in yes.items()}
    margins = {
        "none": before,
        "vhr": {key: margin + 0.4 for key, margin in before.items()},
        "pai": {key: margin + yes[key] for key, margin in before.items()},
        "none@blank": {key: 0.4 * noise[key] for key in yes},
        "vhr:heads=random": {key: margin + 0.1 for key, margin in before.items()},
    }
    answers = []
    for label, margin in margins.items():
        by_seed: Mapping[int, Mapping[str, Record]] = {
            seed: {
                item.id: Record(
                    item.id,
                    item.cluster,
                    "yes" if margin[item.id] + 0.2 * seed * float(rng.normal()) > 0 else "no",
                    seed=seed,
                    margin=margin[item.id],
                )
                for item in task.items
            }
            for seed in range(seeds)
        }
        answers.append(Answers(label, by_seed[0], manifest(label), by_seed))
    return run(task, *answers)


def pope_scores(seeds: int = 1) -> TaskScores:
    """Scores of `pope_run`."""
    return score_run(pope_run(seeds), title="POPE", draws=400)
