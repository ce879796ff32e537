"""Paint clips under several conditions and keep their strips.

Every condition paints the same clips, all frames of a clip as one batch from the same noise.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from regaze.evals.clips.task import Clips, ClipSource, strip
from regaze.evals.pictures.runner import FLAGGED, described, refuse_images, timed, whole
from regaze.evals.runs import driver, files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.cost import now
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.records import Key, Record
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Do, Done, Plan
from regaze.evals.sandbox.video.painting import HeldBackError, paint_clip
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.hooks.checks import check_choice
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.flow import Flow, save

ARGUMENTS: Mapping[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.0}
FLOWS = ("exact", "own")
"""Which flow a method gets that takes one: the clip's, or what the spec itself names."""

_STRIPS = "strips"
_FLOWS = "flows"
_FIELD = "flow"


def run(
    pipeline: Any,
    conditions: Sequence[Condition],
    source: ClipSource,
    *,
    out: Path,
    identity: Mapping[str, Any],
    arguments: Mapping[str, Any] = ARGUMENTS,
    flow: str = "exact",
    progress: Progress = quiet,
    world: World = World(),  # noqa: B008 (frozen)
) -> RunResult:
    """Paint all clips under all conditions, or what isn't on the disk yet.

    Args:
        pipeline: A ControlNet pipeline of the painting world, see `sandbox.video.pipeline`; left
            as it was found.
        conditions: What to compare; the unedited pipeline is added in front where it is missing.
        source: Which clips.
        out: Directory of the study: one folder per condition.
        identity: ``name``, and what tells the pipeline's weights from others, JSON-able.
        arguments: Arguments of the pipeline's call.
        flow: One of ``FLOWS``. Of a spec whose own ``flow`` is set nothing is changed.
        progress: Called with a condition's label, clips done and clips in all.
        world: This process among those that share the work.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds clips painted with
            other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    check_choice("study of clips", "flow", flow, FLOWS)
    work = ClipPainting(Clips(source, out), pipeline, identity, arguments, flow)
    noted = source.to_dict()
    return driver.run(work, conditions, out=out, source=noted, progress=progress, world=world)


class ClipPainting:
    """Clips to paint, as work for `regaze.evals.runs.driver`."""

    limit = None
    seeds = (0,)

    def __init__(
        self,
        task: Clips,
        pipeline: Any,
        identity: Mapping[str, Any],
        arguments: Mapping[str, Any],
        flow: str,
    ) -> None:
        self.task, self.items, self.pipeline = task, task.items, pipeline
        self.identity, self.arguments, self.flow = identity, arguments, flow
        self.name, self.device = str(identity["name"]), str(pipeline.device)
        self._names = task.files()

    def settings(self) -> Mapping[str, Any]:
        """What the clips of all conditions depend on."""
        return {
            **described(self.task),
            "plan": self.task.source.to_dict(),
            "decoding": dict(self.arguments),
            "flow": self.flow,
            "pipeline": type(self.pipeline).__name__,
            "model": {key: value for key, value in self.identity.items() if key != "name"},
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "regaze": version("regaze"),
            "diffusers": version("diffusers"),
        }

    def resolve(self, condition: Condition) -> tuple[Intervention, ...]:
        """A condition's interventions with every field filled in, but for a flow of each clip."""
        refuse_images(condition)
        # Nothing is written to the run's directory before it is locked.
        with tempfile.TemporaryDirectory() as folder:
            given = self._given_flow(condition.specs, self.items[0], Path(folder))
            with attach(self.pipeline, *given) as attached:
                found = [cast(Intervention, spec) for spec in attached.specs]
        return tuple(
            _with_flow(spec, None) if own is not before else spec
            for spec, own, before in zip(found, given, condition.specs, strict=True)
        )

    def asks(self, condition: Condition) -> Mapping[str, Any]:
        """Nothing further."""
        return {}

    def notes(self, plan: Plan) -> Mapping[str, Any]:
        """Nothing further."""
        return {}

    def batches(self) -> Sequence[Sequence[Item]]:
        """Clip by clip."""
        return [[item] for item in self.items]

    def stands(self, plan: Plan, record: Record) -> bool:
        """What a checker held back it would hold back again; a lost strip is painted again."""
        return not record.ok or whole(self.task.out / record.text)

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[Do]:
        """Paint under a condition, inside."""
        proof: dict[str, Any] | None = None

        def do(seed: int, batch: Sequence[Item], wanted: Collection[Key]) -> Done:
            nonlocal proof
            began = now()
            (item,) = batch
            truth = self.task.clip(item)
            prompt, noise_seed = self.task.prompt(item), self.task.noise_seed(item)
            given = self._given_flow(plan.specs, item, self.task.out / _FLOWS)
            with attach(self.pipeline, *given) as attached:
                try:
                    frames = paint_clip(
                        self.pipeline, truth.normals, prompt, noise_seed, **self.arguments
                    )
                except HeldBackError:
                    frames = []
            if plan.specs:
                firing = attached.report().to_dict()
                # In a clip in which nothing moves a method may rightly do nothing.
                proof = firing if firing["fired"] or proof is None else proof
            if not frames:
                record = Record(item.id, item.cluster, finish="error", error=FLAGGED)
            else:
                name = f"{_STRIPS}/{self._names[item.id]}.png"
                # No record says that a strip is there before it is.
                with files.replacing(plan.folder / name) as path:
                    strip(frames).save(path, "png")
                record = Record(item.id, item.cluster, f"{plan.folder.name}/{name}")
            return timed([record], 1, now() - began, proof)

        yield do

    def _given_flow(
        self, specs: Sequence[Intervention], item: Item, folder: Path
    ) -> list[Intervention]:
        """The specs; those that take a flow and have none get the clip's, where it's exact."""
        path = folder / f"{item.target}.npz"
        given = []
        for spec in specs:
            if self.flow == "exact" and getattr(spec, _FIELD, "") is None:
                if not path.exists():
                    clip = self.task.clip(item)
                    with files.replacing(path) as part, part.open("wb") as file:
                        save(file, Flow(clip.flow, clip.visible))
                spec = _with_flow(spec, str(path))
            given.append(spec)
        return given


def _with_flow(spec: Intervention, flow: str | None) -> Intervention:
    changes: dict[str, Any] = {_FIELD: flow}
    return dataclasses.replace(spec, **changes)
