"""Paint a waving cloth, each frame attending as the one before, moved along the flow.

The cloth is a height field that drifts while ripples run over it, so its motion is known exactly.
Its normal maps steer a ControlNet; without a prompt nothing says what colour it has.

Run:  python examples/moving_cloth.py [--with flow_warp:recursive=true] [--out cloth.gif]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from regaze.evals.clips import animation, measures
from regaze.evals.pictures import comparison, grid, pipelines
from regaze.evals.sandbox.video import structure
from regaze.interventions.diffusion.flow import Flow

FRAMES, SIZE = 8, 32


def cloth() -> tuple[list[Image.Image], Flow, np.ndarray]:
    """Normal maps of a clip, its backward flow, and which pixels of each frame are cloth."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    maps, covered = [], []
    for number in range(FRAMES):
        left, top = 5 + 2 * number, 8 + number  # It drifts by two pixels and one.
        on = ((x >= left) & (x < left + 11) & (y >= top) & (y < top + 12)).astype(float)
        ripples = 0.25 * np.sin((x - left) * 1.1 + (y - top) * 0.4 - 0.8 * number)
        height = structure.heights(on[None]) + on * ripples
        maps.append(structure.normal_map(structure.normals(height)))
        covered.append(on > 0)
    flow = np.where(np.stack(covered)[1:, ..., None], np.array([-2, -1], np.float32), 0)
    return maps, Flow(flow), np.stack(covered)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--with", dest="method", default="flow_warp")
    arguments.add_argument("--prompt", default="")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("cloth.gif"))
    given = arguments.parse_args()

    loaded = pipelines.load("painter-unet", controlnet="painter-controlnet")
    normals, flow, covered = cloth()
    columns = animation.animate(
        loaded,
        comparison.parse(["none", given.method]),
        normals,
        given.prompt,
        flow=flow,
        seed=given.seed,
        arguments={"num_inference_steps": 25, "guidance_scale": 1.0},
    )
    shown = {"normals": normals}
    for column in columns:
        shown[column.title] = frames = [picture.image for picture in column.pictures]
        pixels = np.stack([np.asarray(frame) for frame in frames]) / 255
        error = measures.warping_error(pixels, flow.backward, covered[1:])
        print(f"{column.title}: warping error on the cloth {error:.4f}")

    animation.save(given.out, animation.side_by_side(shown, given.prompt))
    still = given.out.with_suffix(".png")
    grid.save_png(still, animation.strips(shown, given.prompt), {"prompt": given.prompt})
    print(f"wrote {given.out} and {still}")


if __name__ == "__main__":
    main()
