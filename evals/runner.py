"""Ask a model every item of a task, with and without interventions, and keep what it says.

Comparisons are paired by construction: every condition answers the same items in the same batches,
greedily, the unedited model first. What is on the disk decides what is still to do, so a run that
was killed goes on with the same command.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from PIL import Image
from transformers import PreTrainedModel

from regaze.evals import records
from regaze.evals.conditions import Condition, baseline_first
from regaze.evals.generation import Answerer
from regaze.evals.models import identify, processor_settings
from regaze.evals.records import Record
from regaze.evals.results import RUN, RunResult, items_digest, load, take
from regaze.evals.task import Item, Task
from regaze.hooks.attach import attach
from regaze.interventions.base import Intervention

_PACKAGES = ("regaze", "torch", "transformers", "numpy", "pillow")

Progress = Callable[[str, int, int], None]


def run(
    task: Task,
    model: PreTrainedModel,
    processor: Any,
    conditions: Sequence[Condition],
    *,
    out: Path,
    batch_size: int = 8,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    identity: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunResult:
    """Answer all items under all conditions, or whatever part of that isn't on the disk yet.

    Args:
        task: What to ask.
        model: An image-text-to-text model; left as it was found.
        processor: Its processor, with a chat template.
        conditions: What to compare; the unedited model is added in front where it is missing.
        out: Directory of the run: one folder per condition.
        batch_size: Items per batch. Batches are cut by item order and stay the same when a run
            goes on, because padding may move the last bits of a logit.
        limit: Ask only so many items, see `take`.
        max_new_tokens: Longest answer; default: the task's.
        identity: What tells this model from others; default: a hash of its weights.
        source: Anything JSON-able from which the caller can build the task again; kept in the
            directory.
        progress: Called with a condition's label, items done and items in all.

    Raises:
        ValueError: A condition doesn't fit the model, or the directory holds answers made with
            other settings.
        OSError: The directory can't be written.
    """
    items = take(task.items, limit)
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    answerer = Answerer(model, processor, max_new_tokens or task.max_new_tokens)
    identity = identity or identify(model)
    name = str(identity.get("name", type(model).__name__))
    settings = {
        "task": task.name,
        "data_sha256": task.data_hash,
        "items": len(items),
        "items_sha256": items_digest(items),
        "first_prompt": items[0].prompt,
        "batch_size": batch_size,
        "decoding": answerer.settings,
        # A model's name or folder may change, what it holds may not.
        "model": {key: value for key, value in identity.items() if key != "name"},
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "processor": processor_settings(processor),
        "regaze": version("regaze"),
    }
    # Everything that can be refused is refused before the first answer.
    plans = []
    for condition in baseline_first(conditions):
        with attach(model, *condition.specs, processor=processor) as attached:
            specs = tuple(cast(Intervention, spec) for spec in attached.specs)
        config = {**settings, "interventions": [spec.to_dict() for spec in specs]}
        folder = out / records.folder_name(condition.label)
        plan = _Plan(condition.label, name, specs, folder, config)
        records.check_config(plan.folder, plan.config)
        plans.append(plan)
    order = [{"label": p.label, "folder": p.folder.name} for p in plans]
    records.write_json(out / RUN, {"source": source, "limit": limit, "conditions": order})

    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    for plan in plans:
        _answer_all(plan, task, batches, answerer, progress)
    return load(task, out)


@dataclass(frozen=True)
class _Plan:
    """A condition, resolved for the model; where its answers go and what they depend on."""

    label: str
    model: str
    specs: tuple[Intervention, ...]
    folder: Path
    config: Mapping[str, Any]


def _answer_all(
    plan: _Plan,
    task: Task,
    batches: Sequence[Sequence[Item]],
    answerer: Answerer,
    progress: Progress,
) -> None:
    """Answer whatever one condition hasn't answered yet, batch by batch."""
    predictions = plan.folder / records.PREDICTIONS
    records.repair(predictions)
    known = records.read(predictions)
    manifest = _open_manifest(plan, task.profile, answerer.model)
    session = manifest["sessions"][-1]
    done, total = 0, sum(map(len, batches))
    progress(plan.label, done, total)
    model, processor = answerer.model, answerer.processor
    with attach(model, *plan.specs, processor=processor) as attached:
        for batch in batches:
            fresh = _news(_ask(batch, task, answerer, known), known)
            if fresh:
                known.update(fresh)
                session["ended"] = _now()
                session["answered"] += len(fresh)
                session["firing"] = attached.report().to_dict() if plan.specs else None
                manifest["counts"] = _counts(known)
                # The manifest first: no answer is on the disk without the proof that its
                # intervention acted.
                records.write_json(plan.folder / records.MANIFEST, manifest)
                records.append(predictions, fresh.values())
            done += len(batch)
            progress(plan.label, done, total)


def _open_manifest(plan: _Plan, profile: str, model: PreTrainedModel) -> dict[str, Any]:
    """The manifest with a new session; it's on the disk before the first answer is."""
    path = plan.folder / records.MANIFEST
    before = records.read_json(path)["sessions"] if path.exists() else []
    session = {
        "started": _now(),
        "ended": None,
        "answered": 0,
        "firing": None,
        "device": str(model.device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }
    manifest = {
        "condition": plan.label,
        "model": plan.model,
        "profile": profile,
        "config_sha256": records.digest(plan.config),
        "config": plan.config,
        "counts": {},
        "sessions": [*before, session],
    }
    if not before:
        records.write_json(path, manifest)
    return manifest


def _ask(
    batch: Sequence[Item], task: Task, answerer: Answerer, known: Mapping[str, Record]
) -> dict[str, Record]:
    """Answer a whole batch; an item whose image can't be read gets an error for an answer."""
    if all(_answered(item, known) for item in batch):
        return {}
    started = time.perf_counter()
    images: dict[str, Image.Image] = {}
    unreadable: dict[str, OSError] = {}
    for item in batch:
        name = str(item.image)
        if name not in images and name not in unreadable:
            try:
                images[name] = task.load_image(item)
            except OSError as error:
                unreadable[name] = error
    found = {
        item.id: Record(
            item.id, item.cluster, finish="error", error=str(unreadable[str(item.image)])
        )
        for item in batch
        if str(item.image) in unreadable
    }
    asked = [item for item in batch if item.id not in found]
    # Where all that was open has failed again, asking the others again would tell nothing.
    if not all(_answered(item, known) for item in asked):
        answers = answerer([i.prompt for i in asked], [images[str(i.image)] for i in asked])
        seconds = round((time.perf_counter() - started) / len(asked), 4)
        for item, answer in zip(asked, answers, strict=True):
            found[item.id] = Record(item.id, item.cluster, **asdict(answer), seconds=seconds)
    return found


def _answered(item: Item, known: Mapping[str, Record]) -> bool:
    return item.id in known and known[item.id].ok


def _news(fresh: Mapping[str, Record], known: Mapping[str, Record]) -> dict[str, Record]:
    """What isn't on the disk: first answers, and outcomes of another try that differ."""
    news = {}
    for key, record in fresh.items():
        before = known.get(key)
        if before is None:
            news[key] = record
        elif not before.ok and record.error != before.error:
            news[key] = replace(record, attempt=before.attempt + 1)
    return news


def _counts(known: Mapping[str, Record]) -> dict[str, int]:
    finishes = [record.finish for record in known.values()]
    return {
        "answered": len(finishes) - finishes.count("error"),
        "errors": finishes.count("error"),
        "truncated": finishes.count("length"),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
