"""animate: a clip from its normal maps, all frames from one noise."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from regaze.cli.options import Json, spread
from regaze.cli.pipelines import Source, Steps, With
from regaze.cli.terminal import fail, say
from regaze.evals.outputs import check_place
from regaze.evals.sandbox.video import CONTROLNETS

if TYPE_CHECKING:
    from PIL import Image

    from regaze.evals.pictures.pipelines import LoadedPipeline
    from regaze.interventions.diffusion.flow import Flow

_PAINTER = "painter-unet"


@dataclass(frozen=True)
class Steered(Source):
    """The pipeline, and the ControlNet on it."""

    model: Annotated[
        str, typer.Option("--model", "-m", help=f"The pipeline: {_PAINTER}, a folder or a Hub id.")
    ] = _PAINTER
    controlnet: Annotated[
        str | None,
        typer.Option(
            help=f"The ControlNet: {', '.join(CONTROLNETS)} (default with {_PAINTER}), a folder "
            "or a "
            "Hub id."
        ),
    ] = None

    def load(self, **more: Any) -> LoadedPipeline:
        """Load both."""
        own = CONTROLNETS[0] if self.model == _PAINTER else None
        return super().load(controlnet=self.controlnet or own, **more)


@dataclass(frozen=True)
class Motion:
    """The motion to follow, and how it is known."""

    PANEL: ClassVar[str] = "Motion"

    normals: Annotated[
        Path | None,
        typer.Option(help="Folder of the clip's normal maps, in the order of their names."),
    ] = None
    clip: Annotated[
        int,
        typer.Option(
            min=0, help="Number of a test clip of the sandbox, where no --normals are given."
        ),
    ] = 0
    flow: Annotated[
        Path | None,
        typer.Option(help="The clip's backward flow: .npy, .npz, .flo, or a folder of .flo."),
    ] = None
    estimate: Annotated[
        str | None,
        typer.Option(
            help="Estimate the flow from the maps, in place of --flow: dis, farneback or raft."
        ),
    ] = None

    def read(self) -> tuple[list[Image.Image], Flow | None, str | None]:
        """The maps, their flow if it is given or known, and what they show if that is known.

        Raises:
            ValueError: Both a flow and its estimate are asked for.
        """
        if self.flow is not None and self.estimate is not None:
            raise ValueError("give either --flow FILE or --estimate METHOD")
        from regaze.evals.clips import animation
        from regaze.evals.sandbox.video.world import clip
        from regaze.interventions.diffusion import flow as flows
        from regaze.interventions.diffusion import optical_flow
        from regaze.interventions.diffusion.flow import Flow

        known, prompt = None, None
        if self.normals:
            frames = animation.read_frames(self.normals)
        else:
            shown = clip("test", self.clip)
            frames, prompt = shown.normals, shown.prompt
            known = Flow(shown.flow, shown.visible)
        if self.estimate is not None:
            known = optical_flow.estimate(frames, self.estimate)
        return frames, flows.read(self.flow) if self.flow else known, prompt


@spread
def animate(
    source: Steered,
    motion: Motion,
    call: Steps,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="What every frame shows. Default: what the clip does."),
    ] = None,
    with_: With = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the noise that all frames start from.")
    ] = 0,
    file: Annotated[
        Path, typer.Option("--out", "-o", help="File of the animation: .gif, .webp or .mp4.")
    ] = Path("clip.gif"),
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="Frames per second.")] = 8,
    cell: Annotated[
        int | None, typer.Option(min=16, help="Longer side of a frame in the animation, in pixels.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Paint a clip from its normal maps under several conditions, all frames from one noise."""
    given = call.arguments
    from regaze.evals.clips import animation
    from regaze.evals.pictures import comparison, grid
    from regaze.evals.runs.progress import bars

    animation.check_format(file)
    still, folder = file.with_name(f"{file.stem}_strip.png"), file.with_suffix("")
    check_place(file, still, folder / "none" / "frame")
    conditions = comparison.parse(with_ or ())
    frames, flow, known = motion.read()
    if flow is None and animation.wants_flow(conditions):
        raise ValueError("a method needs the clip's flow: give --flow FILE or --estimate dis")
    text = known if prompt is None else prompt
    if text is None:
        raise ValueError("give --prompt: what every frame shows")
    loaded = source.load()
    arguments = {**loaded.arguments, **given}
    with bars() as follow:
        painted = animation.animate(
            loaded,
            conditions,
            frames,
            text,
            flow=flow,
            seed=seed,
            arguments=arguments,
            progress=follow(loaded.name),
        )
    shown = {"normals": frames} | {c.title: [p.image for p in c.pictures] for c in painted}
    about = comparison.describe(loaded, painted, [text], [seed], arguments)
    about["motion"] = {k: v and str(v) for k, v in asdict(motion).items() if v is not None}
    animation.save(file, animation.side_by_side(shown, text, cell), fps)
    grid.save_png(still, animation.strips(shown, text, cell), about)
    animation.save_frames(folder, painted)
    made = {"animation": str(file), "strip": str(still), "frames": str(folder)}
    if as_json:
        typer.echo(json.dumps({**made, **about}))
    else:
        for what, where in made.items():
            say(f"{what.capitalize()}: {where}")
    if silent := [column.title for column in painted if column.silent]:
        fail(f"never fired, so these columns are the unedited pipeline's: {', '.join(silent)}", 1)
