"""The commands that make pictures: compare and sites; and what all commands about them share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table

from regaze.cli_common import Device, fail, out
from regaze.evals.images import comparison, grid, pipelines, prompts
from regaze.evals.images.pipelines import LoadedPipeline
from regaze.evals.images.prompts import Prompt
from regaze.evals.images.render import Shot
from regaze.evals.progress import bars
from regaze.evals.sandbox.painting import PAINTERS
from regaze.hooks.diffusion import native_grid
from regaze.hooks.diffusion import sites as find_sites

Model = Annotated[
    str,
    typer.Option("--model", "-m", help=f"{', '.join(PAINTERS)}, a folder or a Hub id."),
]
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
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, e.g. 768x512.")]
Negative = Annotated[str | None, typer.Option(help="Negative prompt.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other argument of the pipeline: NAME=VALUE. Repeatable."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures to paint at once.")]
DType = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16. Default: float32 on the CPU, else as stored."),
]
Offload = Annotated[
    str, typer.Option(help="What to move to the GPU when it works: none, model, sequential.")
]
Variant = Annotated[str | None, typer.Option(help="Which copy of the weights to read, e.g. fp16.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_KINDS = {
    "self": "image",
    "joint": "image and text",
    "cross": "text",
    "temporal": "other frames",
}


def compare(
    model: Model = PAINTERS[0],
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    with_: With = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="A column per value: softpag.u=0,0.25,0.5,1. Repeatable."),
    ] = None,
    seeds: Seeds = "4",
    file: Annotated[Path, typer.Option("--out", "-o", help="The picture, a PNG.")] = Path(
        "grid.png"
    ),
    gif: Annotated[
        bool, typer.Option("--gif", help="Also an animation, for pipelines that make videos.")
    ] = False,
    cell: Annotated[
        int | None, typer.Option(min=16, help="Longer side of a picture in the grid, in pixels.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    negative: Negative = None,
    set_: Set = None,
    batch_size: BatchSize = 4,
    dtype: DType = None,
    device: Device = None,
    offload: Offload = "none",
    variant: Variant = None,
) -> None:
    """Paint the same prompts from the same noise under several conditions, side by side."""
    if file.suffix.lower() != ".png":
        raise ValueError(
            f"--out must name a .png, got {file}: a grid's settings are kept inside it"
        )
    columns = comparison.parse(with_ or (), sweep or ())
    asked = read_prompts(prompt, prompt_file)
    numbers = read_seeds(seeds)
    given = read_arguments(steps, guidance, size, negative, set_)
    loaded = load_pipeline(model, dtype=dtype, device=device, offload=offload, variant=variant)
    arguments = {**loaded.arguments, **given}
    shots = [Shot(one.text, seed) for one in asked for seed in numbers]
    with bars() as follow:
        painted = comparison.compare(
            loaded,
            columns,
            shots,
            arguments,
            batch_size=batch_size,
            progress=follow(loaded.name),
        )
    texts, labels = [one.text for one in asked], [column.title for column in painted]
    pictures = [column.pictures for column in painted]
    n_frames = len(pictures[0][0].frames)
    if gif and n_frames == 1:
        raise ValueError(f"{model} makes single pictures: --gif is for pipelines that make videos")
    about = comparison.describe(loaded, painted, texts, numbers, arguments)
    drawn = grid.draw(labels, grid.blocks(texts, numbers, pictures), cell=cell)
    grid.save_png(file, drawn, about)
    out.print(f"Grid: {file}", soft_wrap=True, highlight=False)
    if gif:
        frames = [
            grid.draw(labels, grid.blocks(texts, numbers, pictures, frame), cell=cell)
            for frame in range(n_frames)
        ]
        grid.save_gif(file.with_suffix(".gif"), frames)
        out.print(f"Animation: {file.with_suffix('.gif')}", soft_wrap=True, highlight=False)
    if silent := [column.title for column in painted if column.silent]:
        fail(f"never fired, so these columns are the unedited pipeline's: {', '.join(silent)}", 1)


def sites(
    model: Model = PAINTERS[0],
    dtype: DType = None,
    device: Device = None,
    offload: Offload = "none",
    variant: Variant = None,
    as_json: Json = False,
) -> None:
    """List the attention layers of a pipeline, and how methods and head lists name them."""
    loaded = load_pipeline(model, dtype=dtype, device=device, offload=offload, variant=variant)
    found = find_sites(loaded.pipeline)
    denoiser = getattr(loaded.pipeline, "unet", None) or loaded.pipeline.transformer
    grids = [native_grid(denoiser, site) for site in found]
    if as_json:
        listed = [{**asdict(site), "grid": cells} for site, cells in zip(found, grids, strict=True)]
        typer.echo(json.dumps(listed))
        return
    table = Table("layer", "name", "attends to", "heads", "tokens", "grid", box=box.SIMPLE_HEAD)
    for site, cells in zip(found, grids, strict=True):
        number = "" if site.layer is None else f"L{site.layer}"
        shown = "" if cells is None else f"{cells[0]} x {cells[1]}"
        table.add_row(number, site.name, _KINDS[site.kind], str(site.heads), site.order, shown)
    out.print(table)


def load_pipeline(model: str, **options: Any) -> LoadedPipeline:
    """Load a pipeline; the embedded ones on one thread, unless the environment says otherwise."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    if model in PAINTERS:
        # It warns at each prompt that the encoder which says nothing was told nothing.
        diffusers_logging.set_verbosity_error()
    if model in PAINTERS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return pipelines.load(model, **options)


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


def read_arguments(
    steps: int | None,
    guidance: float | None,
    size: str | None,
    negative: str | None,
    others: Sequence[str] | None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call that were given.

    Raises:
        ValueError: A size or another argument has the wrong form.
    """
    width, by, height = (size or "").lower().partition("x")
    if size and not (by and width.isdigit() and height.isdigit()):
        raise ValueError(f"--size {size!r}: expected WIDTHxHEIGHT in pixels, e.g. 768x512")
    found: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": int(width) if size else None,
        "height": int(height) if size else None,
        "negative_prompt": negative,
    }
    found = {key: value for key, value in found.items() if value is not None}
    for text in others or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected NAME=VALUE")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
