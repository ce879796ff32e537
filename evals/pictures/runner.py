"""Paint every prompt with every seed under every condition, and keep the pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Picture
from regaze.evals.pictures.task import Pictures
from regaze.evals.pictures.work import PictureWork, refuse_images, timed
from regaze.evals.runs import driver
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import now
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.interventions.base import Intervention


def run(
    task: Pictures,
    loaded: LoadedPipeline,
    conditions: Sequence[Condition],
    arguments: Mapping[str, Any],
    *,
    out: Path,
    batch_size: int = 4,
    source: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Paint all items under all conditions, or whatever part of that isn't on the disk yet.

    A picture that was lost or cut since it was painted is painted again.

    Args:
        task: The prompts and seeds.
        loaded: The pipeline; left as it was found.
        conditions: The conditions to compare; the unedited pipeline is added in front where it is
            missing.
        arguments: Arguments of the pipeline's call.
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
    work = Painting(task, loaded, Painter(loaded.pipeline, arguments), batch_size)
    return driver.run(work, conditions, out=out, source=source, progress=progress, world=world)


class Painting(PictureWork[Pictures]):
    """Pictures to paint."""

    def __init__(
        self, task: Pictures, loaded: LoadedPipeline, painter: Painter, batch_size: int
    ) -> None:
        super().__init__(task, loaded, batch_size)
        self.painter = painter

    def own(self) -> Mapping[str, Any]:
        """The seeds, the rule of the noise, and the arguments of the pipeline's call."""
        return {
            "noise_seeds": list(self.task.seeds),
            "noise": NOISE,
            "decoding": self.painter.settings,
        }

    def path(self, plan: Plan, name: str) -> Path:
        """The path of a picture, whose name is relative to the condition's folder."""
        return plan.folder / name

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in."""
        refuse_images(condition)
        with attach(self.pipeline, *condition.specs) as attached:
            return tuple(cast(Intervention, spec) for spec in attached.specs)

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Attach a condition's interventions and give what paints its batches."""
        with attach(self.pipeline, *plan.specs) as attached:

            def do(seed: int, batch: Sequence[Item], wanted: Collection[Key]) -> Done:
                began = now()
                pictures = self.painter.paint([self.task.shot(item) for item in batch])
                # Part of a batch may be there, after a kill; it is painted again, to the same
                # pixels, and not written.
                new = [
                    self._keep(plan, item, picture)
                    for item, picture in zip(batch, pictures, strict=True)
                    if (item.id, seed) in wanted
                ]
                firing = attached.report().to_dict() if plan.specs else None
                return timed(new, len(batch), now() - began, firing)

            yield do

    def _keep(self, plan: Plan, item: Item, picture: Picture) -> Record:
        """Write a picture to the disk; return its record, or that of why there is none."""
        if len(picture.frames) > 1 and not all(one.strips for one in self.task.scorers):
            raise ValueError(
                "this pipeline makes videos, and scores are of single pictures; --score moving "
                "is of clips of the painting world"
            )
        shot = self.task.shot(item)
        about = {"condition": plan.label, **shot.to_dict(), "noise_seed": shot.noise_seed}
        strip = None if picture.flagged else picture.strip
        return self.kept(plan, item, strip, self.task.file(item), about)
