"""The common part of all runs that keep pictures, as work for `regaze.evals.runs.driver`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from regaze.evals.pictures import grid
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import Cost, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import items_digest
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Item
from regaze.interventions.base import Intervention

FLAGGED = "the pipeline's safety checker held the picture back"
_END = b"IEND\xae\x42\x60\x82"
"""The end of a PNG of which nothing was cut off."""

AnyTask = TypeVar("AnyTask", bound=Any)


class PictureWork(ABC, Generic[AnyTask]):
    """Items of which a pipeline makes pictures.

    Args:
        task: The task whose pictures are made.
        loaded: The pipeline; left as it was found.
        batch_size: Items to make at once.
    """

    limit = None
    seeds = (0,)

    def __init__(self, task: AnyTask, loaded: LoadedPipeline, batch_size: int) -> None:
        self.task, self.items, self.loaded = task, task.items, loaded
        self.pipeline, self.batch_size = loaded.pipeline, batch_size
        self.name, self.device = loaded.name, str(loaded.pipeline.device)

    @abstractmethod
    def own(self) -> Mapping[str, Any]:
        """Settings of this kind of run alone."""

    @abstractmethod
    def path(self, plan: Plan, name: str) -> Path:
        """The path of the picture that a record names."""

    @abstractmethod
    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, in their order.

        Raises:
            ValueError: It doesn't fit.
        """

    @abstractmethod
    def doing(self, plan: Plan) -> AbstractContextManager[Do]:
        """A context that gives the function which makes a condition's pictures."""

    def settings(self) -> Mapping[str, Any]:
        """Settings that the pictures of all conditions depend on."""
        return {
            "task": self.task.name,
            "data_sha256": self.task.data_hash,
            "items": len(self.items),
            "items_sha256": items_digest(self.items),
            "ids_sha256": files.digest([item.id for item in self.items]),
            "prompts_sha256": files.digest([[item.prompt, item.choices] for item in self.items]),
            "first_prompt": self.items[0].prompt,
            **self.own(),
            "batch_size": self.batch_size,
            "pipeline": type(self.pipeline).__name__,
            "model": {key: v for key, v in self.loaded.identity.items() if key != "name"},
            "dtype": self.loaded.dtype,
            "regaze": version("regaze"),
            "diffusers": version("diffusers"),
        }

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """No further settings."""
        return {}

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        """No further entries."""
        return {}

    def batches(self) -> Sequence[Sequence[Item]]:
        """The items in batches, in their order."""
        size = self.batch_size
        return [self.items[i : i + size] for i in range(0, len(self.items), size)]

    def stands(self, plan: Plan, record: Record) -> bool:
        """False of a lost picture, which is made again; what a checker held back it would again."""
        return not record.ok or whole(self.path(plan, record.text))

    def kept(
        self, plan: Plan, item: Item, picture: Image.Image | None, name: str, about: Any
    ) -> Record:
        """Write a picture to the disk; return its record, or that of why there is none.

        Args:
            plan: The condition.
            item: The picture's item.
            picture: None if the safety checker held it back.
            name: The picture's name, see `path`.
            about: Facts to keep inside the file, JSON-able.
        """
        if picture is None:
            return Record(item.id, item.cluster, finish="error", error=FLAGGED)
        # No record says that a picture is there before it is.
        with files.replacing(self.path(plan, name)) as path:
            grid.save_png(path, picture, about)
        return Record(item.id, item.cluster, name)


def refuse_images(condition: Condition) -> None:
    """Check that a condition shows no other image.

    Raises:
        ValueError: It does, which pipelines can't be shown.
    """
    if condition.image != "given":
        raise ValueError(f"{condition.label}: @{condition.image} is for models that read an image")


def timed(
    new: Sequence[Record], size: int, seconds: float, firing: Mapping[str, Any] | None
) -> Done:
    """The outcome of a batch that took so long."""
    each = round(seconds / size, 4)
    gpu, process = peak_gpu_bytes(), peak_process_bytes()
    cost = Cost(items=size, seconds=seconds, peak_bytes=gpu, rss_bytes=process)
    return Done([replace(record, seconds=each) for record in new], cost, size, firing)


def whole(path: Path) -> bool:
    """True if a PNG is there and nothing of it was cut off."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), 2)
            return file.read() == _END
    except OSError:
        return False
