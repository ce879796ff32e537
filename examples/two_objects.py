"""Two objects without guidance: which is lost, and where do the words look?

A grid: the plain pipeline, Attend-and-Excite and A-STAR on the same noise, each picture followed by
the maps of its nouns.

Run:  python examples/two_objects.py [--model painter-mmdit] [--out two_objects.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from PIL import Image

import regaze
from regaze.evals.pictures import grid, pipelines
from regaze.hooks.diffusion import capture


def overlay(image: Image.Image, heat: Any) -> Image.Image:
    """A map "R C" over the picture, its brightest place red."""
    scaled = ((heat - heat.min()) / (heat.max() - heat.min())).numpy()
    colours = Image.fromarray((mpl.colormaps["turbo"](scaled)[..., :3] * 255).astype("uint8"))
    return Image.blend(image, colours.resize(image.size, Image.Resampling.BICUBIC), 0.6)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-mmdit", help="or a folder, or a Hub id")
    arguments.add_argument("--objects", nargs="+", default=["green cross", "green circle"])
    arguments.add_argument("--layers", nargs="+", default=["L5"])
    arguments.add_argument("--guidance", type=float, default=1.0)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--seeds", type=int, default=4)
    arguments.add_argument("--out", type=Path, default=Path("two_objects.png"))
    given = arguments.parse_args()

    pipe: Any = pipelines.load(given.model).pipeline
    pipe.set_progress_bar_config(disable=True)
    prompt = " and ".join(f"a {one}" for one in given.objects)
    nouns = [one.split()[-1] for one in given.objects]  # Of the words they point best.
    shared: Any = {"tokens": nouns, "layers": given.layers}
    methods: dict[str, list[Any]] = {
        "plain": [],
        "Attend-and-Excite": [regaze.AttendAndExcite(**shared, step_size=5, stop=1, refine="")],
        "A-STAR": [regaze.AStar(**shared, step_size=5)],
    }
    columns: dict[str, list[Image.Image | None]] = {}
    for name, specs in methods.items():
        noise = [torch.Generator().manual_seed(seed) for seed in range(given.seeds)]
        with regaze.attach(pipe, *specs) as run, capture(pipe, given.layers) as seen:
            images = pipe(
                [prompt] * given.seeds, generator=noise, guidance_scale=given.guidance,
                num_inference_steps=given.steps,
            ).images  # fmt: skip
        print(run.report())
        columns[name] = images
        for noun in nouns:
            heats = [seen.map(noun, sample)[0] for sample in range(given.seeds)]
            columns[f"{noun}, {name}"] = [
                overlay(image, heat) for image, heat in zip(images, heats, strict=True)
            ]
    rows = [f"seed {seed}" for seed in range(given.seeds)]
    block = grid.Block(prompt, rows, list(zip(*columns.values(), strict=True)))
    grid.save_png(given.out, grid.draw(list(columns), [block]), {"prompt": prompt})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
