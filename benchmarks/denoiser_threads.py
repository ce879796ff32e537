"""The time of two threads on one attached denoiser, beside two on the plain one.

Each thread has a pipeline with a scheduler of its own, as schedulers hold the step of one run; the
U-Net is the same, and so is what is attached to it. All conditions take turns; ratios are to the
plain runs in as many threads, so a method is no slower in two threads if both columns say the same.

Run:  python -m benchmarks.denoiser_threads [--threads 1] [--clock cpu] [--rounds 5]
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from rich.console import Console

import regaze
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)
from benchmarks.perturbation import TEXT, unet, unet_call
from benchmarks.threads import at_once

STEPS = 2


def paint(pipe: Any, call: dict[str, Any]) -> None:
    """One run of a few steps."""
    with torch.inference_mode():
        pipe(**call, guidance_scale=5.0, num_inference_steps=STEPS, output_type="latent")


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parse(parser)
    pipe: Any = unet(options.device)
    second = StableDiffusionPipeline(
        None, None, None, pipe.unet, DDIMScheduler(clip_sample=False, steps_offset=1), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    call = {n: x.to(options.device)[..., :32, :32] if n == "latents" else x.to(options.device)
            for n, x in unet_call().items()}  # fmt: skip
    for one in (pipe, second):
        one.set_progress_bar_config(disable=True)

    def run(spec: Any, threads: int) -> float:
        specs = [] if spec is None else [spec]
        with regaze.attach(pipe, *specs):
            jobs = [partial(paint, one, call) for one in (pipe, second)[:threads]]
            return seconds(partial(at_once, jobs), options)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        specs = {
            "plain": None,
            "PAG": regaze.PAG(),
            "SoftPAG": regaze.SoftPAG(),
            "NAG": regaze.NAG(embeddings={"text": torch.randn(1, TEXT, 256)}),
        }
        steps = {(name, n): partial(run, spec, n) for n in (1, 2) for name, spec in specs.items()}
        times = side_by_side(steps, options.rounds, warm_up=1)
    table = make_table(f"{STEPS} steps, {describe(options)}", ("", "one thread", "two threads"))
    for name in specs:
        ratios = [Ratio.of(times[name, n], times["plain", n]) for n in (1, 2)]
        table.add_row(name, *(str(ratio or "") for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
