"""The settings that the answers of a run of questions depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from regaze.evals.asking.batching import BatchSize
from regaze.evals.asking.generation import Answerer
from regaze.evals.asking.models import processor_settings
from regaze.evals.runs import files
from regaze.evals.runs.results import items_digest
from regaze.evals.task import Item, QuestionTask


def settings(
    task: QuestionTask,
    items: Sequence[Item],
    answerer: Answerer,
    identity: Mapping[str, Any],
    batch_size: BatchSize,
) -> dict[str, Any]:
    """The settings that the answers of all conditions depend on, JSON-able."""
    model = answerer.model
    return {
        "task": task.name,
        "profile": task.profile,
        "data_sha256": task.data_hash,
        "items": len(items),
        "items_sha256": items_digest(items),
        "ids_sha256": files.digest([item.id for item in items]),
        "prompts_sha256": files.digest([[item.prompt, item.choices] for item in items]),
        "first_prompt": items[0].prompt,
        "batch_size": batch_size,
        "decoding": answerer.settings,
        "seeds": list(answerer.decoding.seeds),
        "yes_tokens": answerer.yes_no if task.yes_no else None,
        # A model's name or folder may change, what it holds may not.
        "model": {key: value for key, value in identity.items() if key != "name"},
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "processor": processor_settings(answerer.processor),
        "regaze": version("regaze"),
    }
