"""Studies in the painting world as work for `regaze.evals.runs.driver`.

Every condition makes the same items from the same noise; an answer is the name of a PNG in the
folder of its condition.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.work import AnyTask, PictureWork, timed
from regaze.evals.runs.cost import now
from regaze.evals.runs.records import Key
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Item


class Made(NamedTuple):
    """The outcome of an item.

    Attributes:
        item: The item.
        picture: RGB; None if the pipeline's safety checker held it back.
        firing: The interventions' firing; None without any.
    """

    item: Item
    picture: Image.Image | None
    firing: Mapping[str, Any] | None


class WorldWork(PictureWork[AnyTask]):
    """Items of a task of the painting world to make.

    Args:
        task: The task whose pictures are made; it knows its source and its files' names.
        loaded: The pipeline; left as it was found.
        arguments: Arguments of the pipeline's call.
        batch_size: Items to make at once.
    """

    folder: ClassVar[str]
    """The pictures' folder in that of a condition."""

    def __init__(
        self,
        task: AnyTask,
        loaded: LoadedPipeline,
        arguments: Mapping[str, Any],
        batch_size: int = 1,
    ) -> None:
        super().__init__(task, loaded, batch_size)
        self.arguments = arguments
        self._names = task.files()

    @abstractmethod
    def make(self, plan: Plan, batch: Sequence[Item], wanted: Sequence[Item]) -> Iterator[Made]:
        """Make a batch under a condition.

        Args:
            plan: The condition.
            batch: The batch's items.
            wanted: Items that aren't on the disk yet; whatever else is made isn't kept.
        """

    def own(self) -> Mapping[str, Any]:
        """The task, and the arguments of the pipeline's call."""
        return {"plan": self.task.source.to_dict(), "decoding": dict(self.arguments)}

    def path(self, plan: Plan, name: str) -> Path:
        """The path of a picture, whose name is relative to the run's folder."""
        return plan.folder.parent / name

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Give what makes a condition's items."""
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
                    name = f"{plan.folder.name}/{self.folder}/{self._names[made.item.id]}.png"
                    about = {"condition": plan.label, "prompt": made.item.prompt}
                    new.append(self.kept(plan, made.item, made.picture, name, about))
            return timed(new, len(batch), now() - began, proof)

        yield do
