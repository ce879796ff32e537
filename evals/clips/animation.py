"""Animate a clip's normal maps with one pipeline under several conditions, side by side.

All frames are painted as one batch from the same noise, because a frame may attend to the one
before: a clip takes the memory of as many pictures.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regaze.evals.outputs import whole
from regaze.evals.pictures import comparison, grid
from regaze.evals.pictures.comparison import Column
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.render import Shot
from regaze.evals.runs.conditions import Condition
from regaze.evals.runs.progress import Progress
from regaze.evals.runs.store import folder_name
from regaze.interventions.base import Intervention
from regaze.interventions.diffusion import flow as flows
from regaze.interventions.diffusion.flow import Flow

FORMATS = (".gif", ".webp", ".mp4")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_CONTROLS = ("control_image", "image")


def read_frames(folder: Path) -> list[Image.Image]:
    """The pictures of a folder in the order of their names, RGB.

    Raises:
        ValueError: There are fewer than two, or they differ in size.
        OSError: It can't be read.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} pictures ({', '.join(_PICTURES)}); a clip needs two"
        )
    frames = []
    for path in files:
        with Image.open(path) as picture:
            frames.append(picture.convert("RGB"))
        if frames[-1].size != frames[0].size:
            raise ValueError(
                f"{path.name} is {frames[-1].size}, {files[0].name} {frames[0].size}: the frames "
                "of a clip must have one size"
            )
    return frames


def wants_flow(conditions: Mapping[str, Condition]) -> bool:
    """True if a condition needs a flow that it hasn't been given."""
    return any(_lacks_flow(spec) for c in conditions.values() for spec in c.specs)


def _lacks_flow(spec: Intervention) -> bool:
    return hasattr(spec, "flow") and spec.flow is None


def animate(
    loaded: LoadedPipeline,
    conditions: Mapping[str, Condition],
    frames: Sequence[Image.Image],
    prompt: str,
    *,
    flow: Flow | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any],
    progress: Progress = lambda label, done, total: None,
) -> list[Column]:
    """Paint a clip under each condition.

    Args:
        loaded: A pipeline that is steered by pictures; left as it was found.
        conditions: By their titles.
        frames: Pictures to steer it by, e.g. normal maps.
        prompt: The prompt of every frame.
        flow: The clip's backward flow, for methods that need one and name none.
        seed: Seed of the noise that every frame starts from.
        arguments: Arguments of the pipeline's call.
        progress: Called with a condition's title, denoising steps done and in all.

    Returns:
        One column per condition, with a picture per frame.

    Raises:
        ValueError: The pipeline takes no pictures, or something doesn't fit it.
    """
    known = inspect.signature(type(loaded.pipeline).__call__).parameters
    control = next((name for name in _CONTROLS if name in known), None)
    if control is None:
        raise ValueError(
            f"{type(loaded.pipeline).__name__} isn't steered by pictures; give a ControlNet"
        )
    given: dict[str, Any] = {**arguments, control: list(frames)}
    if "callback_on_step_end" in known:
        given["callback_on_step_end"] = _Steps(list(conditions), progress)
    kept = None if flow is None or not wants_flow(conditions) else str(flows.keep(flow))
    conditions = {
        title: Condition(
            tuple(
                dataclasses.replace(spec, flow=kept) if _lacks_flow(spec) else spec  # type: ignore[call-arg]
                for spec in condition.specs
            )
        )
        for title, condition in conditions.items()
    }
    shots = [Shot(prompt, seed)] * len(frames)
    return comparison.compare(loaded, conditions, shots, given, batch_size=len(frames))


class _Steps:
    """A pipeline's callback that counts steps, condition by condition."""

    def __init__(self, titles: Sequence[str], progress: Progress) -> None:
        self._titles, self._progress = iter(titles), progress
        self._title = ""

    def __call__(self, pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> Any:
        if step == 0:
            self._title = next(self._titles)
        self._progress(self._title, step + 1, int(pipeline.num_timesteps))
        return tensors


# -- files -------------------------------------------------------------------------------------


def strips(
    shown: Mapping[str, Sequence[Image.Image]], prompt: str, cell: int | None = None
) -> Image.Image:
    """A still picture: a column per frame, a row per title."""
    count = len(next(iter(shown.values())))
    block = grid.Block(prompt or "(no prompt)", list(shown), [list(row) for row in shown.values()])
    return grid.draw([f"frame {number + 1}" for number in range(count)], [block], cell=cell)


def side_by_side(
    shown: Mapping[str, Sequence[Image.Image]], prompt: str, cell: int | None = None
) -> list[Image.Image]:
    """The frames of an animation: a column per title."""
    count = len(next(iter(shown.values())))
    return [
        grid.draw(
            list(shown),
            [
                grid.Block(
                    prompt or "(no prompt)",
                    [f"frame {number + 1}"],
                    [[frames[number] for frames in shown.values()]],
                )
            ],
            cell=cell,
        )
        for number in range(count)
    ]


def check_format(path: Path) -> None:
    """Check that an animation can be written there, before anything is painted.

    Raises:
        ValueError: Its ending names no known format.
        ImportError: What writes it isn't installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--out must end in {', '.join(FORMATS)}, got {path}")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio.v3  # noqa: F401
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "mp4 needs imageio and imageio-ffmpeg: pip install 'regaze[video]', or write a .gif"
            ) from error


def save(path: Path, frames: Sequence[Image.Image], fps: float = 8) -> None:
    """Write an animation; .gif and .webp repeat.

    Raises:
        ValueError: The ending names no known format.
        ImportError: What writes it isn't installed.
        OSError: The file can't be written.
    """
    check_format(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind == "mp4":
        import imageio.v3 as iio

        # H.264 with half-size colour needs even sides.
        even = [f.crop((0, 0, f.width // 2 * 2, f.height // 2 * 2)) for f in frames]
        video = np.stack([np.asarray(frame) for frame in even])
        with whole(path) as part:
            # The part's name doesn't say what it is.
            iio.imwrite(
                part,
                video,
                extension=".mp4",
                fps=fps,
                codec="libx264",
                macro_block_size=1,
                output_params=["-f", "mp4"],
            )
        return
    # A GIF's palette is the first frame's unless every frame has its own.
    own = [f.quantize(256) for f in frames] if kind == "gif" else list(frames)
    settings: dict[str, Any] = {} if kind == "gif" else {"lossless": True}
    settings |= {"append_images": own[1:], "duration": round(1000 / fps), "loop": 0}
    with whole(path) as part:
        own[0].save(part, kind, save_all=True, **settings)


def save_frames(folder: Path, columns: Sequence[Column]) -> None:
    """Write every frame as a PNG, in a folder per condition.

    Raises:
        OSError: A file can't be written.
    """
    for column in columns:
        for number, picture in enumerate(column.pictures):
            with whole(folder / folder_name(column.title) / f"{number:04d}.png") as part:
                picture.image.save(part, "png")
