"""Ask a model every item of a task, with and without interventions, and keep what it says.

Comparisons are paired by construction: every condition answers the same items in the same batches,
the unedited model first. What is on the disk decides what is still to do, so a run that was killed
goes on with the same command, also with another number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from regaze.evals.asking import batching
from regaze.evals.asking.asker import Asker, Plan
from regaze.evals.asking.batching import BatchSize, Halving
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import identify
from regaze.evals.asking.preparing import split
from regaze.evals.asking.prompts import Question
from regaze.evals.asking.settings import settings as settings_of
from regaze.evals.runs import records, sessions
from regaze.evals.runs.conditions import Condition, baseline_first, other_images
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.records import Key
from regaze.evals.runs.results import RUN, RunResult, load, session_files, take
from regaze.evals.task import Item, Task
from regaze.hooks.attach import attach
from regaze.hooks.host import find_host
from regaze.interventions.base import Intervention

_log = logging.getLogger(__name__)
_REMARKS = {"truncated": "were cut at the length limit", "blank": "are only white space"}
_REMARKABLE = 0.01


def run(
    task: Task,
    model: PreTrainedModel,
    processor: Any,
    conditions: Sequence[Condition],
    *,
    out: Path,
    batch_size: BatchSize = 8,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    decoding: Decoding | None = None,
    share: bool = True,
    identity: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    certificates: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = lambda label, done, total: None,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Answer all items under all conditions, or whatever part of that isn't on the disk yet.

    Args:
        task: What to ask.
        model: An image-text-to-text model; left as it was found.
        processor: Its processor, with a chat template.
        conditions: What to compare; the unedited model is added in front where it is missing.
        out: Directory of the run: one folder per condition.
        batch_size: Items per batch; ``auto`` begins with many and takes fewer when memory runs
            out. See `regaze.evals.asking.batching.plan`.
        limit: Ask only so many items, see `take`.
        max_new_tokens: Longest answer; default: the task's.
        decoding: How tokens are chosen; default: greedily.
        share: Read each image once for all questions about it, where model and interventions
            allow it; the manifest says where they don't and why.
        identity: What tells this model from others; default: a hash of its weights.
        source: Anything JSON-able from which the caller can build the task again; kept in the
            directory.
        certificates: What `regaze.verify` found, as JSON, by a condition's label; kept in its
            manifest.
        progress: Called with a condition's label, items done and items in all, of this process.
        world: This process among those that share the work, see `distributed.join`.

    Raises:
        ValueError: A condition doesn't fit the model, or the directory holds answers made with
            other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    items = take(task.items, limit)
    batches = batching.plan(items, batch_size)
    answerer = Answerer(model, processor, max_new_tokens or task.max_new_tokens, decoding)
    identity = identity or identify(model)
    settings = settings_of(task, items, answerer, identity, batch_size)
    apart = _why_apart(out, share, task, batches, answerer, conditions)
    # Everything that can be refused is refused before the first answer.
    plans = []
    for condition in baseline_first(conditions):
        specs = _resolved(condition, model, processor)
        config = {
            **settings,
            "sharing": {"prefix": apart is None, "why": apart},
            "image": condition.image,
            "interventions": [spec.to_dict() for spec in specs],
        }
        shown = {item.image: item.image for item in items if item.image is not None}
        if condition.image == "wrong":
            shown = dict(other_images(shown))
        plan = Plan(condition, specs, out / records.folder_name(condition.label), shown, config)
        records.check_config(plan.folder, plan.config)
        plans.append(plan)
    keys = [(item.id, seed) for seed in answerer.decoding.seeds for item in items]
    with records.locked(out) if world.first else nullcontext():
        if world.first:
            _prepare(plans, keys, task.profile, str(identity.get("name", type(model).__name__)))
            for plan in plans:
                if certificate := (certificates or {}).get(plan.condition.label):
                    sessions.certify(plan.folder, certificate)
            order = [{"label": p.condition.label, "folder": p.folder.name} for p in plans]
            made_from = {"source": source, "limit": limit, "conditions": order}
            records.write_json(out / RUN, made_from)
        world.wait()
        known = [records.read(plan.folder / records.PREDICTIONS) for plan in plans]
        # Nobody answers before all have read what there is: all must share out the same rest.
        world.wait()
        # What fits into memory under one condition is a good guess for the next.
        halving = Halving(batch_size)
        for plan, before in zip(plans, known, strict=True):
            Asker(plan, task, answerer, halving, world, progress).ask_all(batches, before)
        world.wait()
        if world.first:
            _finish(plans, keys)
        world.wait()
    return load(task, out)


def _resolved(
    condition: Condition, model: PreTrainedModel, processor: Any
) -> tuple[Intervention, ...]:
    """A condition's interventions with every field filled in, in their order."""
    specs, asking = split(condition.specs)
    with attach(model, *specs, processor=processor) as attached:
        found = [cast(Intervention, spec) for spec in attached.specs]
    if asking:
        found.insert(condition.specs.index(asking), asking.resolve(find_host(model, processor)))
    return tuple(found)


def _why_apart(
    out: Path,
    share: bool,
    task: Task,
    batches: Sequence[Sequence[Item]],
    answerer: Answerer,
    conditions: Sequence[Condition],
) -> str | None:
    """Why no questions share an image's prefix on this model; None if they can."""
    if not share:
        return "turned off"
    before = out / records.folder_name(Condition().label) / records.MANIFEST
    if before.exists():
        # Tried out already. (A run that isn't the same is refused for what differs.)
        found: str | None = records.read_json(before)["config"].get("sharing", {}).get("why")
        return found
    asking = [spec for one in conditions if (spec := split(one.specs)[1])]
    extra = [prompt for spec in asking for prompt in spec.extra_prompts]
    for group in batching.by_image(item for batch in batches for item in batch):
        if group[0].image is None or len(group) + len(group[0].choices) + len(extra) < 2:
            continue
        try:
            image = task.load_image(group[0])
        except OSError:
            continue
        prompts = [*(item.prompt for item in group), *extra]
        return answerer.why_apart([Question(prompt, image) for prompt in prompts])
    return "no image has several questions"


def _prepare(plans: Sequence[Plan], keys: Sequence[Key], profile: str, model: str) -> None:
    """What the first process does before all begin: no answer comes before its manifest."""
    for plan in plans:
        path = plan.folder / records.MANIFEST
        if not path.exists():
            fields = {
                "condition": plan.condition.label,
                "model": model,
                "profile": profile,
                "shares_prefix": plan.why_apart is None,
                "apart": plan.why_apart,
                "config_sha256": records.digest(plan.config),
                "config": plan.config,
                "counts": {},
                "sessions": [],
            }
            records.write_json(path, fields)
        records.repair(plan.folder / records.PREDICTIONS)
        if len(records.all_predictions(plan.folder)) > 1 or session_files(plan.folder):
            # A killed run left them.
            _settle(plan, keys)


def _settle(plan: Plan, keys: Sequence[Key]) -> dict[str, int]:
    """Gather what all processes left of a condition."""
    found = records.settle(plan.folder, keys)
    return sessions.settle(plan.folder, found.values())


def _finish(plans: Sequence[Plan], keys: Sequence[Key]) -> None:
    """What the first process does once all are done; says what a reader of scores should know."""
    for plan in plans:
        numbers = _settle(plan, keys)
        for kind, what in _REMARKS.items():
            if numbers[kind] > _REMARKABLE * numbers["answered"]:
                said = f"{numbers[kind]} of {numbers['answered']} answers {what}"
                _log.warning("%s: %s", plan.condition.label, said)
