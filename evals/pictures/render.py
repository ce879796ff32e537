"""Make pictures: each prompt and seed has a noise of its own, the same whatever is attached."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from PIL import Image

from regaze.hooks.checks import shown, unknown

NOISE = r"torch.Generator('cpu').manual_seed(first 4 bytes of SHA-256 of '{seed}\n{prompt}')"
"""The rule by which noise is drawn; runs keep it, so that those with another aren't mixed."""

# What a run sets itself, and what would make its pictures depend on more than JSON can hold.
_OURS = (
    "prompt",
    "generator",
    "latents",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "output_type",
    "return_dict",
)


_STEP_END = "callback_on_step_end"
_COUNTS = ("num_inference_steps", "height", "width", "num_frames")


class Shot(NamedTuple):
    """A picture to make: the prompt, and the number of the picture among those of that prompt.

    Attributes:
        negative: The negative prompt, where prompts have their own.
    """

    prompt: str
    seed: int
    negative: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as a picture's file holds it."""
        return {key: value for key, value in self._asdict().items() if value != ""}

    @property
    def noise_seed(self) -> int:
        """Seed of the generator that draws its noise: a hash of prompt and seed, 32 bits.

        Prompts that shared one noise would share its luck, and intervals over prompts, which take
        them as independent, would be too narrow. It depends on nothing else: not on the batch, the
        order, the process or what is attached. `NOISE` says the same in one line.
        """
        return int.from_bytes(sha256(f"{self.seed}\n{self.prompt}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Picture:
    """The outcome of a shot.

    Attributes:
        frames: RGB; one, unless the pipeline makes videos.
        flagged: True if the pipeline's safety checker held it back, so that it is black.
    """

    frames: tuple[Image.Image, ...]
    flagged: bool = False

    @property
    def image(self) -> Image.Image:
        """The picture, of a video the frame in the middle."""
        return self.frames[len(self.frames) // 2]

    @property
    def strip(self) -> Image.Image:
        """The picture, of a video all frames side by side."""
        sides = [frame.width for frame in self.frames]
        joined = Image.new("RGB", (sum(sides), self.frames[0].height))
        for number, frame in enumerate(self.frames):
            joined.paste(frame, (sum(sides[:number]), 0))
        return joined


class Painter:
    """Makes pictures with one pipeline and one choice of its arguments.

    Args:
        pipeline: A diffusers text-to-image or text-to-video pipeline.
        arguments: Call arguments, e.g. ``guidance_scale`` and ``num_inference_steps``.

    Attributes:
        settings: The arguments, and the pipeline's defaults where they are numbers or strings.

    Raises:
        ValueError: The pipeline takes no prompt, doesn't know an argument, or it isn't free to be
            chosen.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        known = inspect.signature(type(pipeline).__call__).parameters
        name = type(pipeline).__name__
        if "prompt" not in known:
            raise ValueError(f"{name} takes no prompt, so it can't be asked for anything")
        for argument in arguments:
            if argument in _OURS:
                raise ValueError(f"{argument} can't be set: it follows from the prompts and seeds")
            if argument not in known:
                free = [key for key in known if key not in {*_OURS, "self"}]
                raise ValueError(unknown(f"argument of {name}", argument, free))
            _check(argument, arguments[argument])
        self.pipeline, self.arguments = pipeline, dict(arguments)
        defaults = {key: value.default for key, value in known.items() if key not in _OURS}
        plain = {k: v for k, v in defaults.items() if isinstance(v, (bool, int, float, str))}
        self.settings: dict[str, Any] = {**plain, **arguments}

    @property
    def _given(self) -> str:
        """The settings, for messages."""
        return ", ".join(f"{k}={v!r}" for k, v in self.arguments.items()) or "its own settings"

    @torch.no_grad()
    def paint(
        self, shots: Sequence[Shot], told: Callable[[int], None] | None = None
    ) -> list[Picture]:
        """Make a batch of pictures.

        Noise is drawn on the CPU by a generator of each picture's own, so that a picture starts
        from the same noise in every batch, on every device and under every intervention.

        Args:
            shots: The pictures to make.
            told: Called after each sampling step with its number, from 0, by pipelines that have
                ``callback_on_step_end``.

        Raises:
            ValueError: An argument doesn't fit the pipeline, or what it made isn't finite.
        """
        noise = [torch.Generator("cpu").manual_seed(shot.noise_seed) for shot in shots]
        name = type(self.pipeline).__name__
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
            try:
                output = self.pipeline(
                    prompt=[shot.prompt for shot in shots],
                    generator=noise,
                    output_type="pil",
                    **self._steps(told),
                    **{**self.arguments, **self._negative(shots)},
                )
            except RuntimeWarning as error:
                raise ValueError(
                    f"{name} made a picture that isn't finite: its weights hold NaN, or overflow "
                    f"in their dtype (try --dtype float32), or an argument is too large"
                ) from error
            except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
                raise ValueError(f"{name} fails with {self._given}: {_line(error)}") from error
        videos = getattr(output, "frames", None)
        made = [[image] for image in output.images] if videos is None else videos
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(made)
        return [
            Picture(tuple(frame.convert("RGB") for frame in frames), bool(flag))
            for frames, flag in zip(made, flags, strict=True)
        ]

    def _steps(self, told: Callable[[int], None] | None) -> dict[str, Any]:
        """The argument by which a pipeline reports its steps, if it has one."""
        if (
            told is None
            or _STEP_END not in inspect.signature(type(self.pipeline).__call__).parameters
        ):
            return {}

        def step(pipeline: Any, number: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            told(number)
            return kept

        return {_STEP_END: step}

    def _negative(self, shots: Sequence[Shot]) -> dict[str, list[str]]:
        """The negative prompts of a batch, if any of it has one, or one was given for all.

        Raises:
            ValueError: Both are so, or the pipeline takes none.
        """
        given = self.arguments.get("negative_prompt")
        if not any(shot.negative for shot in shots):
            # Prompts are a list, and some pipelines want both to be of one type.
            return {"negative_prompt": [given] * len(shots)} if isinstance(given, str) else {}
        if given is not None:
            raise ValueError("these prompts have negative prompts of their own: leave that out")
        name = type(self.pipeline).__name__
        if "negative_prompt" not in inspect.signature(type(self.pipeline).__call__).parameters:
            raise ValueError(f"{name} takes no negative prompt, and these prompts have some")
        return {"negative_prompt": [shot.negative for shot in shots]}


def _check(name: str, value: Any) -> None:
    """Check that an argument of a pipeline is finite, and a number of things at least one."""
    if name in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError(f"{name} is too large: {shown(value)}")
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, (list, tuple)) or isinstance(value, Mapping):
        for part in parts:
            _check(f"{name}'s parts", part)


def _line(error: BaseException) -> str:
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
