"""Put a method on a pipeline that is already loaded, see that it acted, and take it off again.

Run:  python examples/wrap_pipeline.py [--model painter-unet] [--with pag:scale=2]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import regaze
from regaze.evals.pictures import pipelines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="painter-unet", help="or a folder, or a Hub id")
    arguments.add_argument("--with", dest="method", default="pag:scale=2")
    arguments.add_argument("--prompt", default="a green triangle and a white cross")
    given = arguments.parse_args()

    loaded = pipelines.load(given.model)
    pipe = loaded.pipeline  # any diffusers pipeline, however you loaded it

    def paint() -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        return np.asarray(pipe(given.prompt, generator=noise, **loaded.arguments).images[0])

    before = paint()
    with regaze.attach(pipe, regaze.parse(given.method)) as run:
        during = paint()
    after = paint()

    print(run.report())
    moved = np.abs(during.astype(int) - before).mean()
    print(f"mean change of a pixel while attached: {moved:.1f} of 255")
    print(f"equal to the bit once detached: {np.array_equal(before, after)}")


if __name__ == "__main__":
    main()
