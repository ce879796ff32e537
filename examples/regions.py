"""Prompts for parts of the picture, more or less of the prompt of the whole in them.

A grid: the plain pipeline, then regions that overlap in the middle, for several shares of the base
prompt, each from the same noise.

Run:  python examples/regions.py [--model painter-mmdit] [--out regions.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import regaze
from regaze.evals.pictures import grid, pipelines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-mmdit", help="or a folder, or a Hub id")
    arguments.add_argument("--left", default="a red circle")
    arguments.add_argument("--right", default="a blue square")
    arguments.add_argument("--prompt", help="of the whole; default: left and right")
    arguments.add_argument("--base", type=float, nargs="+", default=[0.0, 0.3, 0.6])
    arguments.add_argument("--stop", type=float, default=1.0, help="share of the steps")
    arguments.add_argument("--seeds", type=int, default=4)
    arguments.add_argument("--out", type=Path, default=Path("regions.png"))
    given = arguments.parse_args()

    loaded = pipelines.load(given.model)
    pipe: Any = loaded.pipeline
    prompt = given.prompt or f"{given.left} and {given.right}"
    # Both hold the middle, and what lies there reads the first one's prompt.
    places = [((0.0, 0.0, 0.55, 1.0), given.left), ((0.45, 0.0, 1.0, 1.0), given.right)]
    methods: dict[str, list[Any]] = {"plain": []}
    for base in given.base:
        spec = regaze.Regions(places, base=base, stop=given.stop, overlap="first")
        methods[f"base {base:g}"] = [spec]

    columns: dict[str, list[Image.Image | None]] = {}
    for name, specs in methods.items():
        noise = [torch.Generator().manual_seed(seed) for seed in range(given.seeds)]
        with regaze.attach(pipe, *specs) as run:
            images = pipe([prompt] * given.seeds, generator=noise, **loaded.arguments).images
        print(run.report())
        columns[name] = list(images)
    rows = [f"seed {seed}" for seed in range(given.seeds)]
    cells = [[column[seed] for column in columns.values()] for seed in range(given.seeds)]
    about = {"model": given.model, "prompt": prompt, "regions": places}
    grid.save_png(given.out, grid.draw([*columns], [grid.Block(prompt, rows, cells)]), about)
    print(f"Grid: {given.out}")


if __name__ == "__main__":
    main()
