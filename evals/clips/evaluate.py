"""Measures a ControlNet: ``python -m regaze.evals.clips.evaluate``.

Prints the table of its model card: clips painted with and without prompt and ControlNet, and what
the measures give for the world's own frames, as they are and through the autoencoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from regaze.evals.clips.task import measure
from regaze.evals.sandbox.painting.checker import check, total
from regaze.evals.sandbox.painting.scenes import SPLITS
from regaze.evals.sandbox.painting.stages import pixels
from regaze.evals.sandbox.video import controlnet_path
from regaze.evals.sandbox.video.painting import paint_clip
from regaze.evals.sandbox.video.pipeline import load_pipeline
from regaze.evals.sandbox.video.world import Clip, clips

STEPS = 20
"""Denoising steps; more change little."""

_PAINTED = {
    "prompt, ControlNet": (True, 1.0),
    "empty prompt, ControlNet": (False, 1.0),
    "prompt alone": (True, 0.0),
    "empty prompt alone": (False, 0.0),
}
"""Conditions of the table: whether there is a prompt, and the ControlNet's scale."""


@torch.inference_mode()
def through_autoencoder(pipeline: Any, frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Frames encoded and decoded again: the best that the painter could do."""
    latents = pipeline.vae.encode(pixels(frames)).latent_dist.mode()
    images: list[Image.Image] = pipeline.image_processor.postprocess(
        pipeline.vae.decode(latents).sample
    )
    return images


def scores(painted: Sequence[Sequence[Image.Image]], shown: Sequence[Clip]) -> dict[str, float]:
    """Means of all measures over clips, and the share of prompted objects that are there."""
    each = [measure(frames, truth) for frames, truth in zip(painted, shown, strict=True)]
    verdicts = [
        verdict
        for frames, truth in zip(painted, shown, strict=True)
        for verdict in check(frames, [truth.wanted] * len(frames))
    ]
    counts = total(verdicts)
    means = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    return {**means, "found": counts["found"] / counts["wanted"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("controlnet", type=Path, nargs="?", default=controlnet_path())
    parser.add_argument("--split", choices=SPLITS[1:], default="test")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets a line of JSON per row")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipeline = load_pipeline(given.controlnet)
    shown = clips(given.split, given.clips)
    rows = {
        "the world's own frames": [truth.images for truth in shown],
        "these through the autoencoder": [
            through_autoencoder(pipeline, truth.images) for truth in shown
        ],
    }
    for name, (prompted, scale) in _PAINTED.items():
        rows[name] = [
            paint_clip(
                pipeline,
                truth.normals,
                truth.prompt if prompted else "",
                number,
                num_inference_steps=STEPS,
                guidance_scale=given.guidance,
                controlnet_conditioning_scale=scale,
            )
            for number, truth in enumerate(shown)
        ]
    columns = list(scores(rows["the world's own frames"][:1], shown[:1]))
    print(f"| {given.split} | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name, painted in rows.items():
        found = scores(painted, shown)
        print(f"| {name} | {' | '.join(f'{found[column]:.2f}' for column in columns)} |")
        if given.log:
            with given.log.open("a") as log:
                done = {"scores": f"{given.split}, {name}", "clips": given.clips}
                log.write(json.dumps({**done, "guidance": given.guidance, **found}) + "\n")


if __name__ == "__main__":
    main()
