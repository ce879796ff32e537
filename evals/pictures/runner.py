"""Paint every prompt with every seed under every condition, and keep the pictures.

As with answers of a vision-language model, every condition paints the same items in the same
batches, the unedited pipeline first, and what is on the disk decides what is still to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from regaze.evals.pictures import grid
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Picture, Shot
from regaze.evals.pictures.task import FOLDER, Pictures
from regaze.evals.runs import records, sessions
from regaze.evals.runs.conditions import Condition, baseline_first
from regaze.evals.runs.cost import Cost, now, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import RUN, RunResult, items_digest, load
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.interventions.base import Intervention

FLAGGED = "the pipeline's safety checker held the picture back"


def run(
    task: Pictures,
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    arguments: Mapping[str, Any],
    *,
    out: Path,
    batch_size: int = 4,
    source: Mapping[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Paint all items under all conditions, or whatever part of that isn't on the disk yet.

    Args:
        task: The prompts and seeds.
        loaded: The pipeline; left as it was found.
        conditions: What to compare; the unedited pipeline is added in front where it is missing.
        arguments: Of the pipeline's call.
        out: Directory of the run: one folder per condition, with its pictures in ``images``.
        batch_size: Pictures to paint at once.
        source: Anything JSON-able from which the caller can build the task again.
        progress: Called with a condition's label, pictures done and pictures in all.
        world: This process among those that share the work.

    Raises:
        ValueError: A condition or an argument doesn't fit the pipeline, it makes videos, or the
            directory holds pictures made with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    painter = Painter(loaded.pipeline, arguments)
    settings = {
        "task": task.name,
        "data_sha256": task.data_hash,
        "items": len(task.items),
        "items_sha256": items_digest(task.items),
        "ids_sha256": records.digest([item.id for item in task.items]),
        "prompts_sha256": records.digest([[item.prompt, item.choices] for item in task.items]),
        "first_prompt": task.items[0].prompt,
        "noise_seeds": list(task.seeds),
        "noise": NOISE,
        "batch_size": batch_size,
        "decoding": painter.settings,
        "pipeline": type(loaded.pipeline).__name__,
        "model": {key: value for key, value in loaded.identity.items() if key != "name"},
        "dtype": loaded.dtype,
        "regaze": version("regaze"),
        "diffusers": version("diffusers"),
    }
    # Everything that can be refused is refused before the first picture.
    plans = []
    for condition in baseline_first(conditions):
        if condition.image != "given":
            raise ValueError(
                f"{condition.label}: @{condition.image} is for models that read an image"
            )
        with attach(loaded.pipeline, *condition.specs) as attached:
            specs = tuple(cast(Intervention, spec) for spec in attached.specs)
        config = {**settings, "interventions": [spec.to_dict() for spec in specs]}
        folder = out / records.folder_name(condition.label)
        records.check_config(folder, config)
        plans.append(_Plan(condition.label, specs, folder, config))
    size = batch_size
    batches = [task.items[i : i + size] for i in range(0, len(task.items), size)]
    keys = [(item.id, 0) for item in task.items]
    with records.locked(out) if world.first else nullcontext():
        if world.first:
            _prepare(plans, keys, loaded.name)
            order = [{"label": plan.label, "folder": plan.folder.name} for plan in plans]
            records.write_json(out / RUN, {"source": source, "limit": None, "conditions": order})
        world.wait()
        known = [records.read(plan.folder / records.PREDICTIONS) for plan in plans]
        # Nobody paints before all have read what is left, or they would deal it out differently.
        world.wait()
        for plan, found in zip(plans, known, strict=True):
            _paint(plan, task, painter, batches, found, world, progress)
        world.wait()
        if world.first:
            for plan in plans:
                _settle(plan, keys)
        world.wait()
    return load(task, out)


@dataclass(frozen=True)
class _Plan:
    """A condition, resolved for the pipeline; where its pictures go and what they depend on."""

    label: str
    specs: tuple[Intervention, ...]
    folder: Path
    config: Mapping[str, Any]


def _prepare(plans: Sequence[_Plan], keys: Sequence[records.Key], model: str) -> None:
    """What the first process does before all begin: no picture comes before its manifest."""
    for plan in plans:
        path = plan.folder / records.MANIFEST
        if not path.exists():
            fields = {
                "condition": plan.label,
                "model": model,
                "config_sha256": records.digest(plan.config),
                "config": plan.config,
                "counts": {},
                "sessions": [],
            }
            records.write_json(path, fields)
        (plan.folder / FOLDER).mkdir(exist_ok=True)
        records.repair(plan.folder / records.PREDICTIONS)
        if len(records.all_predictions(plan.folder)) > 1:
            _settle(plan, keys)


def _settle(plan: _Plan, keys: Sequence[records.Key]) -> None:
    """Gather what all processes left of a condition."""
    found = records.settle(plan.folder, keys)
    sessions.settle(plan.folder, found.values())


def _paint(
    plan: _Plan,
    task: Pictures,
    painter: Painter,
    batches: Sequence[Sequence[Item]],
    known: Mapping[records.Key, Record],
    world: World,
    progress: Progress,
) -> None:
    """Paint this process's part of whatever one condition hasn't painted yet."""
    todo = [batch for batch in batches if not all((item.id, 0) in known for item in batch)]
    mine = todo[world.rank :: world.size]
    total = sum(map(len, batches))
    done = total - sum(map(len, todo))
    progress(plan.label, done, total)
    session = sessions.Session(plan.folder, world, str(painter.pipeline.device))
    with attach(painter.pipeline, *plan.specs) as attached:
        for batch in mine:
            began = now()
            pictures = painter.paint([task.shot(item) for item in batch])
            # Part of a batch may be known, after a kill; it is painted again, to the same pixels.
            new = [
                _keep(plan, item, task.shot(item), task.file(item), picture)
                for item, picture in zip(batch, pictures, strict=True)
                if (item.id, 0) not in known
            ]
            seconds = now() - began
            gpu, process = peak_gpu_bytes(), peak_process_bytes()
            cost = Cost(items=len(batch), seconds=seconds, peak_bytes=gpu, rss_bytes=process)
            firing = attached.report().to_dict() if plan.specs else None
            # The session first: no picture counts without the proof that its intervention acted.
            session.note(len(new), cost, len(batch), firing)
            each = round(seconds / len(batch), 4)
            rows = [Record(i.id, i.cluster, text, seconds=each, **why) for i, text, why in new]
            records.append(records.predictions(plan.folder, world.rank), rows)
            done += len(batch)
            progress(plan.label, done, total)
    session.save()


def _keep(
    plan: _Plan, item: Item, shot: Shot, name: str, picture: Picture
) -> tuple[Item, str, dict[str, Any]]:
    """Write a picture to the disk; its file's name, or why there is none."""
    if len(picture.frames) > 1:
        raise ValueError("this pipeline makes videos, and scores are of single pictures")
    if picture.flagged:
        return item, "", {"finish": "error", "error": FLAGGED}
    path = plan.folder / name
    about = {"condition": plan.label, **shot._asdict(), "noise_seed": shot.noise_seed}
    with records.writing(path):
        part = path.with_suffix(".part")
        grid.save_png(part, picture.image, about)
        part.replace(path)
    return item, name, {}
