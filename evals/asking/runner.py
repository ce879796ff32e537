"""Ask a model every item of a task, with and without interventions, and keep what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from regaze.evals.asking import batching
from regaze.evals.asking.batching import BatchSize
from regaze.evals.asking.decoding import Decoding
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import identify
from regaze.evals.asking.preparing import split
from regaze.evals.asking.prompts import Question
from regaze.evals.asking.work import Asking
from regaze.evals.runs import driver, store
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import RunResult, take
from regaze.evals.task import Item, QuestionTask


def run(
    task: QuestionTask,
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
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Answer all items under all conditions, or whatever part of that isn't on the disk yet.

    Args:
        task: The task to ask.
        model: An image-text-to-text model; left as it was found.
        processor: The model's processor, with a chat template.
        conditions: The conditions to compare; the unedited model is added in front where it is
            missing.
        out: Directory of the run: one folder per condition.
        batch_size: Items per batch; ``auto`` begins with many and takes fewer when memory runs
            out. See `regaze.evals.asking.batching.plan`.
        limit: Ask only so many items, see `take`.
        max_new_tokens: Longest answer; default: the task's.
        decoding: The way tokens are chosen; default: greedily.
        share: Read each image once for all questions about it, where model and interventions
            allow it; the manifest says where they don't and why.
        identity: Facts that tell this model from others; default: a hash of its weights.
        source: Anything JSON-able from which the caller can build the task again; kept in the
            directory.
        certificates: Findings of `regaze.verify`, as JSON, by a condition's label; kept in its
            manifest.
        progress: Called with a condition's label, items done and items in all, of this process.
        world: This process among those that share the work, see `distributed.join`.

    Raises:
        ValueError: A condition doesn't fit the model, or the directory holds answers made with
            other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    items = take(task.items, limit)
    answerer = Answerer(model, processor, max_new_tokens or task.max_new_tokens, decoding)
    apart = _why_apart(out, share, task, batching.plan(items, batch_size), answerer, conditions)
    identity = identity or identify(model)
    work = Asking(task, items, limit, answerer, batch_size, identity, apart)
    return driver.run(
        work,
        conditions,
        out=out,
        source=source,
        certificates=certificates,
        progress=progress,
        world=world,
    )


def _why_apart(
    out: Path,
    share: bool,
    task: QuestionTask,
    batches: Sequence[Sequence[Item]],
    answerer: Answerer,
    conditions: Sequence[Condition],
) -> str | None:
    """The reason why no questions share an image's prefix on this model; None if they can."""
    if not share:
        return "turned off"
    before = out / Condition().label / store.MANIFEST
    if before.exists():
        # Tried out already. (A run that isn't the same is refused for what differs.)
        config = store.read_manifest(before.parent)["config"]
        found: str | None = config.get("sharing", {}).get("why")
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
