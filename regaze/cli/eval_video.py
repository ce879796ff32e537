"""eval video: clips of the painting world, whose motion is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regaze.cli.options import Json
from regaze.cli.pipelines import With
from regaze.cli.terminal import resumable
from regaze.cli.worlds import Denoising, Folder, Guidance, Split, Threads, report, set_up

if TYPE_CHECKING:
    from regaze.evals.pictures.scorers import Scorer


def video(
    with_: With = None,
    split: Split = "validation",
    clips: Annotated[
        int, typer.Option(min=2, help="Clips to paint: the first so many of the split.")
    ] = 30,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts", help="Prompts to paint from: empty or full. Repeatable; default: both."
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, max=1000, help="Frames of a clip.")] = 8,
    grain: Annotated[
        float, typer.Option(help="Unit of speed in pixels a frame; all speeds are multiples of it.")
    ] = 1.0,
    flow: Annotated[
        str,
        typer.Option(
            help="Flow that a method gets: exact (the clip's) or own (named in its spec)."
        ),
    ] = "exact",
    steps: Denoising = 20,
    guidance: Guidance = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip's noise.")] = 0,
    controlnet: Annotated[
        Path | None, typer.Option(help="Folder of another ControlNet than the built-in one.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            "-s",
            help="Further scores: ssim, lpips or frame_consistency:model=DIR between neighbouring "
            "frames, clip:model=DIR. Repeatable.",
        ),
    ] = None,
    threads: Threads = 1,
    folder: Folder = Path("runs/video"),
    as_json: Json = False,
) -> None:
    """Paint clips whose motion is known under several conditions, and measure them."""
    if controlnet is not None and not controlnet.is_dir():
        raise ValueError(f"--controlnet: there is no folder {controlnet}")
    from regaze.evals.clips.study import run_video
    from regaze.evals.clips.task import PROMPTS, ClipSource
    from regaze.evals.outputs import check_place
    from regaze.evals.pictures import comparison
    from regaze.evals.reports.report import REPORT
    from regaze.evals.runs.distributed import join
    from regaze.evals.runs.progress import bars
    from regaze.evals.runs.store import RUN
    from regaze.evals.sandbox.video import controlnet_path
    from regaze.evals.sandbox.video.pipeline import identity, load_pipeline

    set_up(threads)
    conditions = list(comparison.parse(with_ or ["none"]).values())
    source = ClipSource(split, clips, tuple(prompts or PROMPTS), frames, grain, seed)
    scorers = [_scorer(text) for text in scores or ()]
    check_place(folder / RUN, folder / REPORT)
    world = join()
    with resumable(folder), bars(shown=world.first) as follow:
        scored = run_video(
            load_pipeline(controlnet),
            conditions,
            source,
            out=folder,
            identity=identity(controlnet),
            arguments={"num_inference_steps": steps, "guidance_scale": guidance},
            flow=flow,
            scorers=scorers,
            progress=follow((controlnet or controlnet_path()).name),
            world=world,
        )
    report(folder, scored, as_json)


def _scorer(text: str) -> Scorer:
    from regaze.evals.clips.consistency import FrameConsistency
    from regaze.evals.pictures.scorers import Scorer, parse

    name, _, model = text.partition(":model=")
    if name == FrameConsistency.name:
        return FrameConsistency(model) if model else FrameConsistency()
    found = parse(text)
    if not isinstance(found, Scorer):
        raise ValueError(f"{text} scores sets of pictures, not single ones")
    return found
