"""Options that the commands about pipelines share: loading one, its call, the prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from regaze.cli.noise import hush
from regaze.cli.options import Device, on_one_thread
from regaze.cli.terminal import note
from regaze.evals.sandbox.painting import NEGATION, SUBSETS
from regaze.evals.sandbox.video import PIPELINES
from regaze.hooks.checks import shown

if TYPE_CHECKING:
    from regaze.evals.pictures.pipelines import LoadedPipeline
    from regaze.evals.pictures.prompts import Prompt

_MOST = 1_000_000
"""Seeds of a prompt: more is a slip of the keyboard, and a list that fills the memory."""

With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", "-w", help="A condition: none, pag, softpag:u=0.5, or pag+softpag. Repeatable."
    ),
]
Cell = Annotated[
    int | None, typer.Option(min=16, help="Longer side of a picture in the PNG, in pixels.")
]
Seeds = Annotated[
    str,
    typer.Option(
        help="Number of pictures of each prompt, or their seeds: 3,14,15 (a single seed: 3,)."
    ),
]


@dataclass(frozen=True)
class Source:
    """The pipeline, and how to hold it."""

    PANEL: ClassVar[str] = "Pipeline"

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help=f"The pipeline: {', '.join(PIPELINES)}, a folder or a Hub id."
        ),
    ] = PIPELINES[0]
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision: float32, bfloat16 or float16. Default: float32 on the CPU, else as "
            "stored."
        ),
    ] = None
    device: Device = None
    offload: Annotated[
        str,
        typer.Option(
            help="Parts that are on the GPU only while they compute: none, model or sequential."
        ),
    ] = "none"
    variant: Annotated[
        str | None, typer.Option(help="Which copy of the weights to read, e.g. fp16.")
    ] = None

    def load(self, **more: Any) -> LoadedPipeline:
        """Load it; the embedded ones on one thread, unless the environment says otherwise."""
        from regaze.evals.pictures import pipelines

        hush("transformers")
        hush("diffusers")
        if self.model in PIPELINES:
            on_one_thread()
        loaded = pipelines.load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            offload=self.offload,  # type: ignore[arg-type]
            variant=self.variant,
            **more,
        )
        note(*loaded.notes)
        return loaded

    @property
    def name(self) -> str:
        """The model's name for a folder."""
        return Path(self.model).name

    @property
    def scoring_device(self) -> str:
        """The device to compute scores on: the pipeline's."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Steps:
    """Arguments of a pipeline's call, whatever it makes."""

    PANEL: ClassVar[str] = "Pipeline"

    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None
    guidance: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance; 1 turns it off.")
    ] = None
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None
    others: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other argument of the pipeline: NAME=VALUE. Repeatable."),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that were given.

        Raises:
            ValueError: An argument has the wrong form.
        """
        found = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative,
        }
        found = {key: value for key, value in found.items() if value is not None}
        for text in self.others or ():
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--set {text!r}: expected NAME=VALUE")
            try:
                found[name.strip()] = json.loads(value)
            except ValueError:
                found[name.strip()] = value
        return found


@dataclass(frozen=True)
class Call(Steps):
    """Arguments of a pipeline's call for pictures."""

    size: Annotated[
        str | None, typer.Option(help="Size of a picture in pixels, WIDTHxHEIGHT, e.g. 768x512.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures to paint at once.")] = 4

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that were given.

        Raises:
            ValueError: A size or another argument has the wrong form.
        """
        if self.size is None:
            return super().arguments
        width, _, height = self.size.lower().partition("x")
        digits = width.isdecimal() and height.isdecimal() and self.size.isascii()
        if not digits or max(len(width), len(height)) > 6:
            raise ValueError(f"--size {self.size!r}: expected WIDTHxHEIGHT in pixels, e.g. 768x512")
        # What --set says goes before.
        return {"width": int(width), "height": int(height), **super().arguments}


@dataclass(frozen=True)
class Prompts:
    """The prompts to paint."""

    PANEL: ClassVar[str] = "Prompts"

    texts: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to paint. Repeatable.")
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with a prompt a line, or .jsonl with id and group."),
    ] = None

    def read(self) -> list[Prompt]:
        """The prompts that are asked for.

        Raises:
            ValueError: Neither is given, or both, or the file holds something else.
        """
        from regaze.evals.pictures import prompts

        if bool(self.texts) == bool(self.prompts):
            raise ValueError(
                "give what to paint, either by --prompt (repeatable) or by --prompts FILE"
            )
        return prompts.read(self.prompts) if self.prompts else prompts.of(self.texts or ())


@dataclass(frozen=True)
class WorldPrompts(Prompts):
    """The prompts to paint; for an embedded painter its own world's by default."""

    split: Annotated[
        str, typer.Option(help="Split of the painting world, where no prompts are given.")
    ] = "test"
    subsets: Annotated[
        list[str] | None,
        typer.Option(
            "--subset",
            help=f"Subset of the painting world: {', '.join(SUBSETS)} or {NEGATION}. Repeatable; "
            f"default: all but {NEGATION}.",
        ),
    ] = None
    n_prompts: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Prompts of each subset of the painting world."),
    ] = 50

    def of(self, model: str) -> list[Prompt]:
        """The prompts that a pipeline is asked for.

        Raises:
            ValueError: Nothing is, of a pipeline that has no world of its own.
        """
        from regaze.evals.pictures import prompts

        if self.texts or self.prompts:
            return self.read()
        if model not in PIPELINES:
            raise ValueError("--prompts is missing: which prompts should be painted?")
        return prompts.painting_world(self.split, self.subsets or SUBSETS, self.n_prompts)


def check_png(file: Path) -> None:
    """Check the name of a file of pictures, which keeps their settings inside.

    Raises:
        ValueError: It isn't a PNG's.
    """
    if file.suffix.lower() != ".png":
        raise ValueError(f"--out must name a .png, got {file}: settings are kept inside it")


def read_seeds(text: str) -> list[int]:
    """The seeds that ``--seeds`` asks for.

    Raises:
        ValueError: It is something else than a number of seeds or a list of different ones.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
        if "," not in text and numbers[0] > _MOST:
            raise ValueError(f"more than {_MOST}")
    except ValueError as error:
        raise ValueError(
            f"--seeds {shown(text)}: give a number of seeds up to {_MOST}, or seeds such as 3,14"
        ) from error
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds {text!r}: there must be at least one, all different, none negative"
        )
    return seeds
