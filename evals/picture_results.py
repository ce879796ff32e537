"""Methods for diffusion models on the painters: ``python -m regaze.evals.picture_results``.

(Or ``make picture-results``.) Chooses each method's settings on validation prompts, paints test
prompts with them and with their controls, measures what a picture costs, and writes
``picture-results.json`` and, from that alone, ``results-diffusion.md``. Stopped, it goes on where
it was; another size wants another ``--out``. ``--only`` does some of the studies, ``--methods``
some of their methods beside those that ``--out`` holds already. The page is of what is done there,
and with ``--keep`` also of other studies that ``picture-results.json`` held. A study is kept or
painted as a whole: its methods share a baseline and Holm's correction, so one that would lose
methods is refused. ``--times`` paints nothing and measures anew what the stored settings cost.
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

from regaze.evals.pictures.kept_studies import (
    DONE,
    beside,
    check_whole,
    done_studies,
    of_methods,
    stored_studies,
)
from regaze.evals.pictures.pipelines import LoadedPipeline, load
from regaze.evals.pictures.prompts import painting_world
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.pictures.stored import PictureSource
from regaze.evals.pictures.studies import STUDIES, Study
from regaze.evals.pictures.study import run_images
from regaze.evals.reports.picture_page import page
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.controls import with_controls
from regaze.evals.runs.progress import bars
from regaze.evals.scoring.scores import TaskScores
from regaze.evals.scoring.statistics import rounded
from regaze.hooks import attach

_DTYPE = "bfloat16"
_BATCH = 30
_ROUNDS = 3
_TIMED = 8


@dataclass(frozen=True)
class Sizes:
    """Numbers of prompts and steps; each prompt is painted once.

    Attributes:
        validation: Prompts drawn of a subset, to choose settings by; repeated ones are left out.
        test: Prompts drawn of the test split's subsets, to report.
        steps: Denoising steps.
    """

    validation: int = 60
    test: int = 320
    steps: int = 10


def results(study: Study, loaded: LoadedPipeline, out: Path, sizes: Sizes) -> dict[str, Any]:
    """Do what of a study isn't on the disk yet.

    Returns:
        The data that the page is made from, JSON-able.

    Raises:
        ValueError: The directory holds pictures of other sizes, or of another model.
        OSError: It can't be written.
    """
    tried = [
        Condition((spec,)) for specs in study.grids.values() if len(specs) > 1 for spec in specs
    ]
    validation = _paint(study, loaded, tried, "validation", sizes, out / study.name / "validation")
    best = {name: _best(validation, specs) for name, specs in study.grids.items()}
    chosen = [Condition.parse(label) for label in best.values()]
    compared = with_controls(chosen)[: len(chosen)]
    controls = [c for c in with_controls(chosen) if c not in compared and c.image == "given"]
    test = _paint(study, loaded, [*compared, *controls], "test", sizes, out / study.name / "test")
    times = _times(study, loaded, compared, sizes, out / study.name / "times.json")
    return {
        **{key: getattr(study, key) for key in ("name", "model", "subset", "guidance")},
        "best": best,
        "tables": {"validation": validation, "test": test},
        "times": times,
    }


def _paint(
    study: Study,
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    split: str,
    sizes: Sizes,
    out: Path,
) -> dict[str, Any]:
    prompts = painting_world(split, [study.subset], getattr(sizes, split))
    # Validation has another noise than the test split by its prompts alone.
    source = PictureSource(tuple(prompts), (0,), ("painting",))
    with bars() as follow:
        done = run_images(
            source, loaded, conditions, _call(study, loaded, sizes), out=out, batch_size=_BATCH,
            follow=lambda title: follow(f"{study.name} {split}, {title}"),
        )  # fmt: skip
    assert done is not None  # noqa: S101 (only of several processes some get None)
    return table_of(done.scored.scores[0])


def _call(study: Study, loaded: LoadedPipeline, sizes: Sizes) -> dict[str, Any]:
    return {
        **loaded.arguments,
        "num_inference_steps": sizes.steps,
        "guidance_scale": study.guidance,
    }


def _best(table: Mapping[str, Any], specs: Sequence[Any]) -> str:
    """The label of the settings with the most right pictures; of equal ones the first."""
    if len(specs) == 1:
        return str(specs[0].label)
    labels = [spec.label for spec in specs if spec.label in table["rows"]]
    best: str = max(labels, key=lambda label: table["rows"][label]["metrics"]["right"])
    return best


def table_of(scores: TaskScores) -> dict[str, Any]:
    """The part of a run's scores that the page needs: each condition's metrics and changes."""
    section = scores.sections[-1]
    rows = {
        row.condition.label: {
            "metrics": {name: rounded(one.value) for name, one in row.metrics.items()},
            "changes": row.change
            and {name: one.figures() for name, one in row.change.metrics.items()},
            "control": row.condition.control,
        }
        for row in section.rows
    }
    return {"prompts": scores.clusters, "silent": scores.silent, "rows": rows}


def _times(
    study: Study,
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    sizes: Sizes,
    path: Path,
) -> dict[str, float]:
    """`_measured`, but for what a file holds already; writes it."""
    found: dict[str, float] = files.read_json(path) if path.exists() else {}
    todo = [condition for condition in conditions if condition.label not in found]
    if todo:
        found |= _measured(study, loaded, todo, sizes)
        files.write_json(path, found)
    return found


def _measured(
    study: Study, loaded: LoadedPipeline, conditions: Sequence[Condition], sizes: Sizes
) -> dict[str, float]:
    """Processor seconds beside the unedited pipeline, by label.

    Turn and turn about on one batch, the least of some rounds each: a busy machine changes how
    long a process waits, not how much it computes.
    """
    found = {}
    prompts = painting_world("validation", [study.subset], 2 * _TIMED)[:_TIMED]
    shots = [Shot(one.asked or one.text, 0, one.negative) for one in prompts]
    painter = Painter(loaded.pipeline, _call(study, loaded, sizes))

    def once(condition: Condition) -> float:
        with attach(loaded.pipeline, *condition.specs):
            began = time.process_time()
            painter.paint(shots)
            return time.process_time() - began

    plain = Condition()
    once(plain)
    for condition in conditions:
        rounds = [(once(plain), once(condition)) for _ in range(_ROUNDS)]
        least = [min(each) for each in zip(*rounds, strict=True)]
        found[condition.label] = round(least[1] / least[0], 2)
    return found


def timed(
    study: Study, stored: Mapping[str, Any], loaded: LoadedPipeline, sizes: Sizes
) -> dict[str, Any]:
    """A stored study with the times of its methods measured anew, and all else as it was.

    Args:
        study: With the methods to measure.
        stored: As `results` gave it.
        loaded: The study's painter.
        sizes: The stored study's sizes.
    """
    labels = [label for name, label in stored["best"].items() if name in study.grids]
    found = _measured(study, loaded, [Condition.parse(label) for label in labels], sizes)
    return {**stored, "times": {**stored["times"], **found}}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    usual = Sizes()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/picture-results"), metavar="DIR")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR")
    parser.add_argument("--page", action="store_true", help="only write the page from the JSON")
    parser.add_argument(
        "--only", nargs="+", choices=[s.name for s in STUDIES], help="default: all studies"
    )
    every = sorted({name for study in STUDIES for name in study.grids})
    parser.add_argument("--methods", nargs="+", choices=every, help="default: all of a study")
    parser.add_argument(
        "--keep", action="store_true", help="studies that aren't in --out stay as the JSON has them"
    )
    parser.add_argument(
        "--times", action="store_true", help="only measure times of the JSON's studies anew"
    )
    for name, count in asdict(usual).items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N")
    given = parser.parse_args(arguments)
    stored = given.docs / "picture-results.json"
    if not given.page:
        torch.set_num_threads(1)
        sizes = Sizes(**{name: getattr(given, name) for name in asdict(usual)})
        made = {"sizes": asdict(sizes), "dtype": _DTYPE}
        try:
            keeps = given.keep or given.times
            kept = stored_studies(stored, made, STUDIES) if keeps else {}
        except (ValueError, OSError) as error:
            parser.error(str(error))
        asked = [one for one in STUDIES if one.name in (given.only or [one.name])]
        todo = [one for one in asked if of_methods(one, given.methods).grids]
        if not todo:
            parser.error(f"none of these studies is of {' or '.join(given.methods)}")
        if given.times:
            if missing := [study.name for study in todo if study.name not in kept]:
                parser.error(f"{stored} holds no {' or '.join(missing)}: paint it first")
            for study in todo:
                some, loaded = of_methods(study, given.methods), load(study.model, dtype=_DTYPE)
                kept[study.name] = timed(some, kept[study.name], loaded, sizes)
        else:
            done = done_studies(given.out, STUDIES)
            todo = [beside(study, given.methods, done.get(study.name)) for study in todo]
            try:
                check_whole(STUDIES, todo, done, kept, stored)
            except ValueError as error:
                parser.error(str(error))
            for study in todo:
                one = results(study, load(study.model, dtype=_DTYPE), given.out, sizes)
                files.write_json(given.out / study.name / DONE, one)
            kept |= done_studies(given.out, STUDIES)
        found = [kept[study.name] for study in STUDIES if study.name in kept]
        whole = {**made, "studies": found}
        files.write_text(stored, json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
    files.write_text(given.docs / "results-diffusion.md", page(files.read_json(stored)))


if __name__ == "__main__":
    main()
