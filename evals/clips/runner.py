"""Paint clips under several conditions and keep their strips.

Every condition paints the same clips, all frames of a clip as one batch from the same noise, the
unedited pipeline first. What is on the disk decides what is still to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from regaze.evals.clips.task import NAME, Clips, Plan, strip
from regaze.evals.runs import records, sessions
from regaze.evals.runs.conditions import Condition, baseline_first
from regaze.evals.runs.cost import Cost, now, peak_gpu_bytes, peak_process_bytes
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.records import Record
from regaze.evals.runs.results import RUN, items_digest
from regaze.evals.task import Item
from regaze.hooks.attach import attach
from regaze.hooks.checks import check_choice
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion.flow import Flow, write

ARGUMENTS: Mapping[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.0}
FLOWS = ("exact", "own")
"""Which flow a method gets that takes one: the clip's, or what the spec itself names."""

_STRIPS = "strips"
_FLOWS = "flows"
_FIELD = "flow"


def run(
    pipeline: Any,
    conditions: Sequence[Condition],
    plan: Plan,
    *,
    out: Path,
    identity: Mapping[str, Any],
    arguments: Mapping[str, Any] = ARGUMENTS,
    flow: str = "exact",
    progress: Progress = lambda label, done, total: None,
) -> None:
    """Paint all clips under all conditions, or what isn't on the disk yet.

    Args:
        pipeline: A ControlNet pipeline of the painting world, see `sandbox.video.pipeline`; left
            as it was found.
        conditions: What to compare; the unedited pipeline is added in front where it is missing.
        plan: Which clips.
        out: Directory of the study: one folder per condition.
        identity: ``name``, and what tells the pipeline's weights from others, JSON-able.
        arguments: Of the pipeline's call.
        flow: One of ``FLOWS``. Of a spec whose own ``flow`` is set nothing is changed.
        progress: Called with a condition's label, clips done and clips in all.

    Raises:
        ValueError: A condition doesn't fit the pipeline, or the directory holds clips painted with
            other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    check_choice("study of clips", "flow", flow, FLOWS)
    task = Clips(plan, out)
    config = {
        "task": NAME,
        "data_sha256": task.data_hash,
        "items": len(task.items),
        "items_sha256": items_digest(task.items),
        "plan": plan.to_dict(),
        "decoding": dict(arguments),
        "flow": flow,
        "pipeline": type(pipeline).__name__,
        "model": {key: value for key, value in identity.items() if key != "name"},
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "regaze": version("regaze"),
        "diffusers": version("diffusers"),
    }
    todo = []
    for condition in baseline_first(conditions):
        if condition.image != "given":
            raise ValueError(
                f"{condition.label}: @{condition.image} is for models that read an image"
            )
        settings = {**config, "interventions": [spec.to_dict() for spec in condition.specs]}
        folder = out / records.folder_name(condition.label)
        records.check_config(folder, settings)
        todo.append((condition, folder, settings))
    with records.locked(out):
        # Everything that can be refused is refused before the first clip.
        for condition, _, _ in todo:
            with attach(pipeline, *_given_flow(condition.specs, task, task.items[0], flow)):
                pass
        order = [{"label": one.label, "folder": folder.name} for one, folder, _ in todo]
        fields = {"source": plan.to_dict(), "limit": None, "conditions": order}
        records.write_json(out / RUN, fields)
        for condition, folder, settings in todo:
            _prepare(folder, condition, settings, identity["name"])
            _paint(pipeline, condition, task, arguments, folder, flow, progress)


@torch.no_grad()
def paint_clip(
    pipeline: Any, normals: Sequence[Image.Image], prompt: str, seed: int, **arguments: Any
) -> list[Image.Image]:
    """All frames of a clip as one batch, from the same noise.

    Args:
        pipeline: A ControlNet pipeline.
        normals: A normal map per frame.
        prompt: Of all frames.
        seed: Of the noise, which is drawn on the CPU.
        arguments: Further ones of the pipeline's call.

    Returns:
        RGB, as many as ``normals``.
    """
    size = [side // pipeline.vae_scale_factor for side in reversed(normals[0].size)]
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, pipeline.unet.config.in_channels, *size)
    noise = torch.randn(shape, generator=generator, dtype=pipeline.unet.dtype)
    output = pipeline(
        prompt=[prompt] * len(normals),
        image=list(normals),
        latents=noise.to(pipeline.device).expand(len(normals), -1, -1, -1),
        **arguments,
    )
    return [frame.convert("RGB") for frame in output.images]


def _prepare(folder: Path, condition: Condition, config: Mapping[str, Any], model: str) -> None:
    """No strip comes before the manifest that says how it was painted."""
    path = folder / records.MANIFEST
    if not path.exists():
        fields = {
            "condition": condition.label,
            "model": model,
            "config_sha256": records.digest(config),
            "config": config,
            "counts": {},
            "sessions": [],
        }
        records.write_json(path, fields)
    (folder / _STRIPS).mkdir(exist_ok=True)
    records.repair(folder / records.PREDICTIONS)


def _paint(
    pipeline: Any,
    condition: Condition,
    task: Clips,
    arguments: Mapping[str, Any],
    folder: Path,
    flow: str,
    progress: Progress,
) -> None:
    known = records.read(folder / records.PREDICTIONS)
    session = sessions.Session(folder, World(), str(pipeline.device))
    proof: dict[str, Any] | None = None
    for done, item in enumerate(task.items):
        progress(condition.label, done, len(task.items))
        if (item.id, 0) in known:
            continue
        began = now()
        specs = _given_flow(condition.specs, task, item, flow)
        truth = task.clip(item)
        with attach(pipeline, *specs) as attached:
            frames = paint_clip(
                pipeline, truth.normals, task.prompt(item), task.noise_seed(item), **arguments
            )
        if specs:
            firing = attached.report().to_dict()
            # In a clip in which nothing moves a method may rightly do nothing.
            proof = firing if firing["fired"] or proof is None else proof
        seconds = now() - began
        gpu, process = peak_gpu_bytes(), peak_process_bytes()
        cost = Cost(items=1, seconds=seconds, peak_bytes=gpu, rss_bytes=process)
        session.note(1, cost, 1, proof)
        name = f"{_STRIPS}/{records.folder_name(item.id)}.png"
        with records.writing(folder / name):
            part = (folder / name).with_suffix(".part")
            strip(frames).save(part, "png")
            part.replace(folder / name)
        text = f"{folder.name}/{name}"
        row = Record(item.id, item.cluster, text, seconds=round(seconds, 4))
        records.append(folder / records.PREDICTIONS, [row])
    progress(condition.label, len(task.items), len(task.items))
    session.save()
    found = records.settle(folder, [(item.id, 0) for item in task.items])
    sessions.settle(folder, found.values())


def _given_flow(
    specs: Sequence[Intervention], task: Clips, item: Item, flow: str
) -> list[Intervention]:
    """The specs; those that take a flow and have none get the clip's, where it is to be exact."""
    path = task.out / _FLOWS / f"{item.target}.npz"
    given = []
    for spec in specs:
        if flow == "exact" and getattr(spec, _FIELD, "") is None:
            if not path.exists():
                clip = task.clip(item)
                write(path, Flow(clip.flow, clip.visible))
            changes: dict[str, Any] = {_FIELD: str(path)}
            spec = dataclasses.replace(spec, **changes)
        given.append(spec)
    return given
