"""Paint clips under several conditions and keep their strips.

Every condition paints the same clips, all frames of a clip as one batch from the same noise.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from regaze.evals.clips.task import Clips, ClipSource, strip
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.work import refuse_images
from regaze.evals.pictures.world_work import Made, WorldWork
from regaze.evals.runs import driver, files
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress, quiet
from regaze.evals.runs.results import RunResult
from regaze.evals.runs.work import Plan
from regaze.evals.sandbox.video.painting import HeldBackError, paint_clip
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.hooks.checks import check_choice
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.flow import Flow, save

ARGUMENTS: Mapping[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.0}
FLOWS = ("exact", "own")
"""The flow for a method that takes one: the clip's, or what the spec itself names."""

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
        conditions: The conditions to compare; the unedited pipeline is added in front where it is
            missing.
        source: The source of the clips.
        out: Directory of the study: one folder per condition.
        identity: ``name``, and what distinguishes the pipeline's weights, JSON-able.
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
    loaded = LoadedPipeline(pipeline, identity)
    work = ClipPainting(Clips(source, out), loaded, arguments, flow)
    noted = source.to_dict()
    return driver.run(work, conditions, out=out, source=noted, progress=progress, world=world)


class ClipPainting(WorldWork[Clips]):
    """Clips to paint."""

    folder = "strips"

    def __init__(
        self, task: Clips, loaded: LoadedPipeline, arguments: Mapping[str, Any], flow: str
    ) -> None:
        super().__init__(task, loaded, arguments)
        self.flow = flow

    def settings(self) -> Mapping[str, Any]:
        """Settings that the clips of all conditions depend on."""
        found = {**super().settings(), "flow": self.flow}
        del found["batch_size"]  # A clip is a batch by itself.
        return found

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

    def make(self, plan: Plan, batch: Sequence[Item], wanted: Sequence[Item]) -> Iterator[Made]:
        """Paint clips, one after the other."""
        for item in wanted:
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
            firing = attached.report().to_dict() if plan.specs else None
            yield Made(item, strip(frames) if frames else None, firing)

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
