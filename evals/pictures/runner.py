"""Paint every prompt with every seed under every condition, and keep the pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from regaze.evals.pictures import grid
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import NOISE, Painter, Picture
from regaze.evals.pictures.task import Pictures
from regaze.evals.runs import driver, files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import Cost, now, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.results import RunResult, items_digest
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.task import Item, Task
from regaze.hooks.attach import attach
from regaze.interventions.base import Intervention

FLAGGED = "the pipeline's safety checker held the picture back"
_END = b"IEND\xae\x42\x60\x82"
"""How a PNG ends, if nothing was cut off."""


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
        conditions: What to compare; the unedited pipeline is added in front where it is missing.
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


class Painting:
    """Pictures to paint, as work for `regaze.evals.runs.driver`."""

    limit = None
    seeds = (0,)

    def __init__(
        self, task: Pictures, loaded: LoadedPipeline, painter: Painter, batch_size: int
    ) -> None:
        self.task, self.items, self.loaded = task, task.items, loaded
        self.painter, self.batch_size = painter, batch_size
        self.name, self.device = loaded.name, str(loaded.pipeline.device)

    def settings(self) -> Mapping[str, Any]:
        """What the pictures of all conditions depend on."""
        return {
            **described(self.task),
            "noise_seeds": list(self.task.seeds),
            "noise": NOISE,
            "batch_size": self.batch_size,
            "decoding": self.painter.settings,
            "pipeline": type(self.loaded.pipeline).__name__,
            "model": {key: v for key, v in self.loaded.identity.items() if key != "name"},
            "dtype": self.loaded.dtype,
            "regaze": version("regaze"),
            "diffusers": version("diffusers"),
        }

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in."""
        refuse_images(condition)
        with attach(self.loaded.pipeline, *condition.specs) as attached:
            return tuple(cast(Intervention, spec) for spec in attached.specs)

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
        """What a checker held back it would hold back again; a lost picture is painted again."""
        return not record.ok or whole(plan.folder / record.text)

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Paint under a condition, inside."""
        with attach(self.loaded.pipeline, *plan.specs) as attached:

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
        """Write a picture to the disk; its file's name, or why there is none."""
        if len(picture.frames) > 1 and not all(one.strips for one in self.task.scorers):
            raise ValueError(
                "this pipeline makes videos, and scores are of single pictures; --score moving "
                "is of clips of the painting world"
            )
        if picture.flagged:
            return Record(item.id, item.cluster, finish="error", error=FLAGGED)
        shot = self.task.shot(item)
        about = {"condition": plan.label, **shot.to_dict(), "noise_seed": shot.noise_seed}
        name = self.task.file(item)
        # No record says that a picture is there before it is.
        with files.replacing(plan.folder / name) as path:
            grid.save_png(path, picture.strip, about)
        return Record(item.id, item.cluster, name)


def described(task: Task) -> dict[str, Any]:
    """What distinguishes a task of pictures or clips from others."""
    return {
        "task": task.name,
        "data_sha256": task.data_hash,
        "items": len(task.items),
        "items_sha256": items_digest(task.items),
        "ids_sha256": files.digest([item.id for item in task.items]),
        "prompts_sha256": files.digest([[item.prompt, item.choices] for item in task.items]),
        "first_prompt": task.items[0].prompt,
    }


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
    """What came of a batch that took so long."""
    each = round(seconds / size, 4)
    gpu, process = peak_gpu_bytes(), peak_process_bytes()
    cost = Cost(items=size, seconds=seconds, peak_bytes=gpu, rss_bytes=process)
    return Done([replace(record, seconds=each) for record in new], cost, size, firing)


def whole(path: Path) -> bool:
    """Whether a PNG is there and nothing of it was cut off."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), 2)
            return file.read() == _END
    except OSError:
        return False
