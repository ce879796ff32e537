"""A negative prompt without classifier-free guidance, and prompts for parts of the picture.

A grid on the same noise: the plain pipeline, NAG away from a negative prompt, and two regions.

Run:  python examples/without.py [--model painter-unet] [--out without.png]
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
    arguments.add_argument("--model", default="painter-unet", help="or a folder, or a Hub id")
    arguments.add_argument("--prompt", default="a circle and a square")
    arguments.add_argument("--negative", default="a red circle")
    arguments.add_argument("--left", default="a green circle")
    arguments.add_argument("--right", default="a blue square")
    arguments.add_argument("--phi", type=float, default=4.0)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--seeds", type=int, default=4)
    arguments.add_argument("--out", type=Path, default=Path("without.png"))
    given = arguments.parse_args()

    pipe: Any = pipelines.load(given.model).pipeline
    pipe.set_progress_bar_config(disable=True)
    halves = [((0, 0, 0.5, 1), given.left), ((0.5, 0, 1, 1), given.right)]
    methods: dict[str, list[Any]] = {
        "plain": [],
        f"without {given.negative}": [regaze.NAG(given.negative, phi=given.phi)],
        f"{given.left} | {given.right}": [regaze.Regions(halves, stop=1.0)],
    }
    columns: dict[str, list[Image.Image | None]] = {}
    for name, specs in methods.items():
        noise = [torch.Generator().manual_seed(seed) for seed in range(given.seeds)]
        with regaze.attach(pipe, *specs) as run:
            columns[name] = pipe(
                [given.prompt] * given.seeds, generator=noise, guidance_scale=1.0,
                num_inference_steps=given.steps,
            ).images  # fmt: skip
        print(run.report())
    rows = [f"seed {seed}" for seed in range(given.seeds)]
    block = grid.Block(given.prompt, rows, list(zip(*columns.values(), strict=True)))
    grid.save_png(given.out, grid.draw(list(columns), [block]), {"prompt": given.prompt})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
