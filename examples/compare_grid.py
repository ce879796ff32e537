"""Show what perturbed-attention guidance does: the same noise under several strengths, as a grid.

Run:  python examples/compare_grid.py [--model painter-mmdit] [--out grid.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import regaze
from regaze.evals.pictures import grid, pipelines
from regaze.evals.pictures.render import Painter, Shot


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-mmdit", help="or a folder, or a Hub id")
    arguments.add_argument("--prompt", default="a red circle and a blue square")
    arguments.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=Path("grid.png"))
    given = arguments.parse_args()

    loaded = pipelines.load(given.model)
    painter = Painter(loaded.pipeline, loaded.arguments)
    shots = [Shot(given.prompt, seed) for seed in range(given.seeds)]
    columns = {}
    for u in given.strengths:
        spec = regaze.SoftPAG(scale=1.0, u=u)
        with regaze.attach(loaded.pipeline, spec) as run:
            columns[f"u = {u:g}"] = painter.paint(shots)
        print(run.report())

    blocks = grid.blocks([given.prompt], range(given.seeds), list(columns.values()))
    grid.save_png(given.out, grid.draw(list(columns), blocks), {"prompt": given.prompt})
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
