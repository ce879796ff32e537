"""Every method on one model: ``python -m regaze.evals.results`` (or ``make results``).

Tunes each method on validation scenes, asks the two test splits of the model's world with
defaults, tuned settings and controls, measures what an answer costs, and writes ``results.json``
and, from that alone, ``results.md``. Stopped, it goes on where it was; another size wants another
``--out``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regaze.evals.analysis.asked import Subject, pick
from regaze.evals.analysis.search import By, Found, by_attribution, by_margin
from regaze.evals.asking.every import Every, every_method
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import Loaded, load
from regaze.evals.asking.work import Asking
from regaze.evals.benchmarks.source import Source
from regaze.evals.benchmarks.worlds import SHAPES, World, home
from regaze.evals.reports.results_page import page
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition, baseline_first
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.progress import Progress, bars
from regaze.evals.runs.work import Plan
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.scoring.statistics import rounded
from regaze.evals.scoring.thresholds import AUC, BEST
from regaze.evals.study import prepare, study
from regaze.evals.tuning.spaces import SPACES
from regaze.evals.tuning.tune import tune_each
from regaze.evals.tuning.tuned import Tuned
from regaze.interventions.base import get

KEPT: Mapping[str, Sequence[str]] = {
    "pope": ("accuracy", "f1", AUC, BEST, "yes_ratio"),
    "chair": ("chair_s", "chair_i", "recall", "precision", "f1", "words"),
}
"""Metrics that are stored."""
FOUND: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adhh": ("chair", {}),
    "pasta": ("pope", {"spans": ("<image>",)}),
}
"""Methods that act on listed heads: where those are found, and what else must be set."""
_HEADS, _ASKED = 4, 48
_BATCH = 72
_ROUNDS = 3


@dataclass(frozen=True)
class Sizes:
    """Amounts to ask.

    Attributes:
        pope: Scenes of each test split, six questions each.
        chair: Scenes of each test split, one caption each.
        validation: Scenes that settings are chosen on, six questions each.
        trials: Settings tried of each method.
    """

    pope: int = 100
    chair: int = 100
    validation: int = 50
    trials: int = 12


def results(loaded: Loaded, out: Path, sizes: Sizes) -> dict[str, Any]:
    """Run everything that isn't on the disk yet.

    Returns:
        What the page is made of, JSON-able.

    Raises:
        ValueError: The directory holds runs of other sizes, or of another model.
        OSError: It can't be written.
    """
    methods = every_method(loaded)
    world = home(str(loaded.identity["name"])) or SHAPES
    with bars() as follow:
        methods = _with_heads(loaded, world, methods, out / "heads", sizes, follow("heads"))
        tuned = tune_each(
            loaded,
            [spec for spec in methods.specs if spec.name in SPACES],
            Source("pope", split=world.validation, n_images=sizes.validation),
            out=out / "tune",
            trials=sizes.trials,
            batch_size=_BATCH,
            progress=follow("tuning"),
        )
        conditions = _conditions(methods, tuned)
        jobs = [
            prepare(Source(name, split=split, n_images=count), out / name / split)
            for name, count in (("pope", sizes.pope), ("chair", sizes.chair))
            for split in world.tests
        ]
        finished = study(jobs, loaded, conditions, progress=follow, batch_size=_BATCH)
        times = _times(loaded, world, methods, out / "times.json")
    tables = [scores for run in finished for scores in run.scores]
    return {
        "model": str(loaded.identity["name"]),
        "sizes": asdict(sizes),
        "times": times,
        "left_out": dict(methods.left_out),
        "tuned": {name: _outcome(search) for name, search in tuned.items()},
        "usual": {spec.name: spec.label for spec in methods.specs},
        "tables": [table_of(scores) for scores in tables],
    }


def _with_heads(
    loaded: Loaded, world: World, methods: Every, out: Path, sizes: Sizes, progress: Progress
) -> Every:
    """The methods, with those that act on listed heads: such that validation scenes show."""
    specs, left_out = list(methods.specs), dict(methods.left_out)
    for name in sorted(FOUND.keys() & left_out.keys()):
        path = out / f"{name}.json"
        benchmark, fields = FOUND[name]
        if not path.exists():
            source = Source(benchmark, split=world.validation, n_images=sizes.validation)
            found = _heads(loaded, name, source, progress)
            files.write_json(path, found.to_dict())
        heads = files.read_json(path)["heads"]
        specs.append(get(name)(**{**fields, "heads": heads}))
        del left_out[name]
    return Every(sorted(specs, key=lambda spec: spec.name), left_out)


def _heads(loaded: Loaded, name: str, source: Source, progress: Progress) -> Found:
    task = source.tasks()[0]
    answerer = Answerer(loaded.model, loaded.processor, task.max_new_tokens)
    subject = Subject(answerer, task, pick(task.items, _ASKED), _ASKED)
    spec = get(name)(**FOUND[name][1])
    by: By = "margin" if task.yes_no else "attribution"
    if by == "margin":
        ranked = by_margin(subject, spec, progress=progress)
    else:
        ranked = by_attribution(subject, progress=progress)
    model, heads = str(loaded.identity["name"]), ranked.top(_HEADS)
    return Found(spec.label, by, model, source.title, len(subject.items), heads, ranked)


def _conditions(methods: Every, tuned: Mapping[str, Tuned]) -> list[Condition]:
    """Defaults, controls of the defaults, and tuned settings that aren't the defaults."""
    usual = [Condition((spec,)) for spec in methods.specs]
    best = [Condition((t.best.spec,)) for t in tuned.values() if t.best is not None]
    return list(dict.fromkeys([*with_controls(usual), *best]))


def _outcome(search: Tuned) -> dict[str, Any]:
    refused = sum(trial.why_not is not None for trial in search.trials)
    return {**search.outcome(), "refused": refused}


def table_of(scores: TaskScores) -> dict[str, Any]:
    """Scores of each condition in the last total of one task, for the page."""
    section = scores.sections[-1]
    rows = {
        row.condition.label: {
            "metrics": {name: rounded(row.metrics[name].value) for name in KEPT[scores.task]},
            "changes": row.change
            and {name: row.change.metrics[name].figures() for name in KEPT[scores.task]},
            "control": row.condition.control,
        }
        for row in section.rows
    }
    return {
        "task": scores.task,
        "title": scores.title,
        "section": section.title,
        "items": scores.scored,
        "scenes": scores.clusters,
        "silent": scores.silent,
        "rows": rows,
    }


def _times(loaded: Loaded, world: World, methods: Every, path: Path) -> dict[str, dict[str, float]]:
    """Processor seconds beside the unedited model, by benchmark and label.

    Turn and turn about on one batch, the least of some rounds each: a busy machine changes how
    long a process waits, not how much it computes.
    """
    if path.exists():
        found: dict[str, dict[str, float]] = files.read_json(path)
        return found
    found = {
        name: _ratios(loaded, methods, Source(name, split=world.validation, n_images=count))
        for name, count in (("pope", 8), ("chair", 8))
    }
    files.write_json(path, found)
    return found


def _ratios(loaded: Loaded, methods: Every, source: Source) -> dict[str, float]:
    task = source.tasks()[0]
    answerer = Answerer(loaded.model, loaded.processor, task.max_new_tokens)
    asking = Asking(task, task.items, None, answerer, _BATCH, loaded.identity, None)
    (batch,) = asking.batches()
    plain, *others = [
        Plan(condition, asking.resolve(condition), Path(), {})
        for condition in baseline_first([Condition((spec,)) for spec in methods.specs])
    ]

    def once(plan: Plan) -> float:
        with asking.doing(plan) as do:
            began = time.process_time()
            do(0, batch, {(item.id, 0) for item in batch})
            return time.process_time() - began

    once(plain)
    found = {}
    for plan in others:
        rounds = [(once(plain), once(plan)) for _ in range(_ROUNDS)]
        least = [min(each) for each in zip(*rounds, strict=True)]
        found[plan.label] = round(least[1] / least[0], 2)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    usual = Sizes()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="sandbox")
    parser.add_argument("--out", type=Path, default=Path("runs/results"), metavar="DIR")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR")
    parser.add_argument("--page", action="store_true", help="only write the page from results.json")
    for name, count in asdict(usual).items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    given = parser.parse_args(arguments)
    stored = given.docs / "results.json"
    if not given.page:
        torch.set_num_threads(1)
        sizes = Sizes(**{name: getattr(given, name) for name in asdict(usual)})
        found = results(load(given.model), given.out, sizes)
        files.write_text(stored, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
    files.write_text(given.docs / "results.md", page(files.read_json(stored)))


if __name__ == "__main__":
    main()
