"""What the commands about pipelines share: how to load one, how to call it, what to paint."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer

from regaze.cli.common import Device
from regaze.evals.pictures import pipelines, prompts
from regaze.evals.pictures.pipelines import LoadedPipeline
from regaze.evals.pictures.prompts import Prompt
from regaze.evals.sandbox.painting import PAINTERS
from regaze.evals.sandbox.painting.scenes import SUBSETS

_PANEL = "Pipeline"

PromptText = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", help="What to paint. Repeatable.")
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--prompts", help="A file with a prompt a line, or .jsonl with id and group."),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", help="none, pag, softpag:u=0.5, or pag+softpag. Repeatable."),
]
Seeds = Annotated[
    str, typer.Option(help="How many pictures of each prompt, or their seeds: 3,14,15.")
]

Split = Annotated[str, typer.Option(help="Of the painting world, where no prompts are given.")]
Subsets = Annotated[
    list[str] | None,
    typer.Option("--subset", help=f"{', '.join(SUBSETS)}. Repeatable; default: all."),
]
NPrompts = Annotated[int, typer.Option(min=1, help="Of each subset of the painting world.")]


def _option(*names: str, **about: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_PANEL, **about)


@dataclass(frozen=True)
class Source:
    """Which pipeline, and how to hold it."""

    model: Annotated[
        str,
        typer.Option("--model", "-m", help=f"{', '.join(PAINTERS)}, a folder or a Hub id."),
    ] = PAINTERS[0]
    dtype: Annotated[
        str | None,
        _option(help="float32, bfloat16, float16. Default: float32 on the CPU, else as stored."),
    ] = None
    device: Device = None
    offload: Annotated[
        str, _option(help="What to move to the GPU when it works: none, model, sequential.")
    ] = "none"
    variant: Annotated[
        str | None, _option(help="Which copy of the weights to read, e.g. fp16.")
    ] = None

    def load(self, **more: Any) -> LoadedPipeline:
        """Load it; the embedded ones on one thread, unless the environment says otherwise."""
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        if self.model in PAINTERS:
            # It warns at each prompt that the encoder which says nothing was told nothing.
            diffusers_logging.set_verbosity_error()
        if self.model in PAINTERS and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        return pipelines.load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            offload=self.offload,  # type: ignore[arg-type]
            variant=self.variant,
            **more,
        )

    @property
    def name(self) -> str:
        """The model's name for a folder."""
        return Path(self.model).name

    @property
    def scoring_device(self) -> str:
        """Where to compute scores: where the pipeline is."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Call:
    """How to call it."""

    steps: Annotated[int | None, _option(min=1, help="Denoising steps.")] = None
    guidance: Annotated[
        float | None, _option(help="Scale of classifier-free guidance; 1: without.")
    ] = None
    size: Annotated[str | None, _option(help="WIDTHxHEIGHT in pixels, e.g. 768x512.")] = None
    negative: Annotated[str | None, _option(help="Negative prompt.")] = None
    others: Annotated[
        list[str] | None,
        _option("--set", help="Any other argument of the pipeline: NAME=VALUE. Repeatable."),
    ] = None
    batch_size: Annotated[int, _option(min=1, help="Pictures to paint at once.")] = 4

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call that were given.

        Raises:
            ValueError: A size or another argument has the wrong form.
        """
        width, by, height = (self.size or "").lower().partition("x")
        if self.size and not (by and width.isdigit() and height.isdigit()):
            raise ValueError(f"--size {self.size!r}: expected WIDTHxHEIGHT in pixels, e.g. 768x512")
        found: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "width": int(width) if self.size else None,
            "height": int(height) if self.size else None,
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


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of those of its parameters that are dataclasses.

    Typer reads options off a signature, and knows no groups of them.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter)
            continue
        groups[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            parameter.replace(name=one.name, default=one.default, annotation=hints[one.name])
            for one in fields(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def read_prompts(texts: Sequence[str] | None, file: Path | None) -> list[Prompt]:
    """What ``--prompt`` or ``--prompts`` asks for.

    Raises:
        ValueError: Neither is given, or both, or the file holds something else.
    """
    if bool(texts) == bool(file):
        raise ValueError("give what to paint, either by --prompt (repeatable) or by --prompts FILE")
    return prompts.read(file) if file else prompts.of(texts or ())


def read_seeds(text: str) -> list[int]:
    """What ``--seeds`` asks for.

    Raises:
        ValueError: It is something else than a number of seeds or a list of different ones.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--seeds {text!r}: give a number of seeds, or seeds such as 3,14"
        ) from error
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"--seeds {text!r}: there must be at least one, all different, none negative"
        )
    return seeds


def asked_for(
    model: str,
    texts: Sequence[str] | None,
    file: Path | None,
    split: str,
    subsets: Sequence[str] | None,
    n: int,
) -> list[Prompt]:
    """The prompts that are given; for an embedded painter its own world's by default."""
    if texts or file:
        return read_prompts(texts, file)
    if model not in PAINTERS:
        raise ValueError("--prompts is missing: which prompts should be painted?")
    return prompts.painting_world(split, subsets or SUBSETS, n)
