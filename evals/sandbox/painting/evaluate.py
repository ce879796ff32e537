"""Scores a painter: ``python -m regaze.evals.sandbox.painting.evaluate DIR``.

Prints the tables of its model card: what became of the prompted objects over a sweep of guidance
scales. Choose settings on ``--split validation``; report ``--split test``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image
from scipy import stats

from regaze.evals.sandbox.painting import SUBSETS
from regaze.evals.sandbox.painting.build import TOKENS
from regaze.evals.sandbox.painting.checker import Verdict, check, total
from regaze.evals.sandbox.painting.scenes import SPLITS, wanted

STEPS = 25
"""Denoising steps; more change little."""
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)
_BATCH = 50
_FATES = ("found", "swapped", "leaked", "malformed", "wrong", "missing")


def paint(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    guidance: float,
    seed: int = 0,
    **settings: Any,
) -> list[Image.Image]:
    """One picture per prompt; prompt ``i`` starts from the noise of seed ``seed + i``.

    So the noise is the same for all settings, and doesn't depend on what is painted beside it.

    Args:
        pipeline: A painter, or any pipeline that takes the same arguments.
        prompts: The prompts to paint.
        guidance: Scale of classifier-free guidance; 1 does without.
        seed: Seed of the first prompt's noise.
        settings: Further arguments of the pipeline's call.
    """
    call: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    if isinstance(pipeline, StableDiffusion3Pipeline):
        call["max_sequence_length"] = TOKENS  # of the third text encoder, which gives only zeros
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        part = list(prompts[start : start + _BATCH])
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images += pipeline(part, generator=noise, **call | settings).images
    return images


def score(
    pipeline: DiffusionPipeline, split: str, subset: str, count: int, guidance: float
) -> list[Verdict]:
    """Paints and checks the first prompts of a subset."""
    asked = wanted(split, subset, count)
    # Not the noise of other subsets: their prompts would share more than chance has them share.
    seed = 100_000 * (1 + SUBSETS.index(subset)) + 10_000 * SPLITS.index(split)
    images = paint(pipeline, [w.prompt for w in asked], guidance, seed)
    return check(images, asked)


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Shares of pictures (right, clean, compositional) and of the prompted objects' fates.

    ``low`` and ``high`` bound ``right`` (Wilson, 95 %), ``extra`` is per picture, ``related`` of
    the pictures whose relation can be told.
    """
    sums = total(verdicts)
    images, objects = sums["images"], sums["wanted"]
    bounds = stats.binomtest(sums["right"], images).proportion_ci(method="wilson")
    found = {"right": sums["right"] / images, "low": bounds.low, "high": bounds.high}
    found |= {name: sums[name] / images for name in ("clean", "compositional")}
    found |= {name: sums[name] / objects for name in _FATES}
    found["extra"] = sums["extra"] / images
    if sums["relations"]:
        found["related"] = sums["related"] / sums["relations"]
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("painter", type=Path, metavar="DIR")
    parser.add_argument("--split", choices=SPLITS[1:], default="test")
    parser.add_argument("--subset", choices=SUBSETS, nargs="+", default=SUBSETS)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--count", type=int, default=200, help="prompts per subset")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets a line of JSON per row")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = DiffusionPipeline.from_pretrained(arguments.painter)
    columns = ("clean", "compositional", *_FATES, "extra", "related")
    print("| prompts | guidance | all right |", " | ".join(columns), "|")
    print("|---" * (3 + len(columns)) + "|")
    for subset in arguments.subset:
        for guidance in arguments.guidance:
            verdicts = score(pipeline, arguments.split, subset, arguments.count, guidance)
            found = shares(verdicts)
            name = f"{arguments.split}, {subset}"
            right = f"{found['right']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            cells = (f"{found[column]:.3f}" if column in found else "" for column in columns)
            print(f"| {name} | {guidance:g} | {right} |", " | ".join(cells), "|", flush=True)
            if arguments.log:
                done = {"scores": name, "guidance": guidance, "images": len(verdicts), **found}
                with arguments.log.open("a") as log:
                    log.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()
