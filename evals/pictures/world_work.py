"""Studies in the painting world as work for `regaze.evals.runs.driver`.

Every condition makes the same items from the same noise; an answer is the name of a PNG in the
folder of its condition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from PIL import Image

from regaze.evals.pictures.grid import save_png
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.runner import FLAGGED, described, timed, whole
from regaze.evals.runs import files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import now
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Item

_Task = TypeVar("_Task", bound=Any)


class Made(NamedTuple):
    """What came of an item.

    Attributes:
        item: The item.
        picture: RGB; None if the pipeline's safety checker held it back.
        firing: What the interventions did; None without any.
    """

    item: Item
    picture: Image.Image | None
    firing: Mapping[str, Any] | None


class WorldWork(ABC, Generic[_Task]):
    """Items of a task of the painting world to make.

    Args:
        task: What is made; it knows its source, its directory, and its files' names.
        loaded: The pipeline; left as it was found.
        arguments: Arguments of the pipeline's call.
        batch_size: Items to make at once.
    """

    limit = None
    seeds = (0,)
    folder: ClassVar[str]
    """Where the pictures lie in a condition's folder."""

    def __init__(
        self,
        task: _Task,
        loaded: LoadedPipeline,
        arguments: Mapping[str, Any],
        batch_size: int = 1,
    ) -> None:
        self.task, self.items, self.loaded = task, task.items, loaded
        self.pipeline, self.arguments, self.batch_size = loaded.pipeline, arguments, batch_size
        self.name, self.device = loaded.name, str(loaded.pipeline.device)
        self._names = task.files()

    @abstractmethod
    def make(self, plan: Plan, batch: Sequence[Item], wanted: Sequence[Item]) -> Iterator[Made]:
        """Make a batch under a condition.

        Args:
            plan: The condition.
            batch: Its items.
            wanted: Those that aren't on the disk yet; whatever else is made isn't kept.
        """

    def settings(self) -> Mapping[str, Any]:
        """What the pictures of all conditions depend on."""
        return {
            **described(self.task),
            "plan": self.task.source.to_dict(),
            "decoding": dict(self.arguments),
            "batch_size": self.batch_size,
            "pipeline": type(self.pipeline).__name__,
            "model": {k: value for k, value in self.loaded.identity.items() if k != "name"},
            "dtype": self.loaded.dtype,
            "regaze": version("regaze"),
            "diffusers": version("diffusers"),
        }

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """Nothing further."""
        return {}

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        """Nothing further."""
        return {}

    def batches(self) -> Sequence[Sequence[Item]]:
        """Neighbours together."""
        size = self.batch_size
        return [self.items[i : i + size] for i in range(0, len(self.items), size)]

    def stands(self, plan: Plan, record: Record) -> bool:
        """What a checker held back it would hold back again; a lost picture is made again."""
        return not record.ok or whole(self.task.out / record.text)

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Make a condition's items, inside."""
        proof: Mapping[str, Any] | None = None

        def do(seed: int, batch: Sequence[Item], wanted: Collection[Key]) -> Done:
            nonlocal proof
            began, new = now(), []
            todo = [item for item in batch if (item.id, seed) in wanted]
            for made in self.make(plan, batch, todo):
                # Where nothing moves or differs a method may rightly do nothing.
                if made.firing and (made.firing["fired"] or proof is None):
                    proof = made.firing
                if made.item in todo:
                    new.append(self._kept(plan, made.item, made.picture))
            return timed(new, len(batch), now() - began, proof)

        yield do

    def _kept(self, plan: Plan, item: Item, picture: Image.Image | None) -> Record:
        if picture is None:
            return Record(item.id, item.cluster, finish="error", error=FLAGGED)
        name = f"{self.folder}/{self._names[item.id]}.png"
        # No record says that a picture is there before it is.
        with files.replacing(plan.folder / name) as path:
            save_png(path, picture, {"condition": plan.label, "prompt": item.prompt})
        return Record(item.id, item.cluster, f"{plan.folder.name}/{name}")
