"""The cost of latent updates in a sampling step, beside the plain pipeline and diffusers' own.

A U-Net of Stable Diffusion's shape, narrower, at 64 x 64 latents (4096 tokens) with random weights
and classifier-free guidance. All conditions share the weights and take turns, one step at a time,
in rotating order; every step measured is one that moves the latents, once. diffusers' deprecated
Attend-and-Excite pipeline, which keeps every layer's map and runs the whole U-Net forward and back,
is the one to compare with. *whole pass* is ours without the early end.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    StableDiffusionAttendAndExcitePipeline,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import regaze
from benchmarks._timing import (
    Ratio,
    describe,
    in_fresh_process,
    make_parser,
    make_table,
    parse,
    peak_memory,
    seconds,
    side_by_side,
)
from benchmarks.perturbation import unet, unet_call
from regaze.hooks.diffusion import gradients, text_maps
from regaze.interventions import AStar, AttendAndExcite

TOKENS = (2, 5)


@dataclass(frozen=True)
class Condition:
    """One way to take a step: plain, with a method attached, or by diffusers' pipeline."""

    name: str
    attach: Any = None
    theirs: bool = False
    whole: bool = False
    target: float | None = None


CONDITIONS = (
    Condition("plain"),
    Condition("A-STAR", AStar(tokens=TOKENS), target=0.75),
    Condition("A-STAR, masks before", AStar(tokens=TOKENS, masks="before")),
    Condition("Attend-and-Excite", AttendAndExcite(tokens=TOKENS, refine="")),
    Condition("A-STAR, whole pass", AStar(tokens=TOKENS), whole=True),
    Condition("diffusers Attend-and-Excite", theirs=True),
)
THEIRS = CONDITIONS[-1].name


class Runner:
    """A pipeline under one condition; `step` takes one sampling step."""

    def __init__(self, pipe: Any, condition: Condition, device: str) -> None:
        self.condition, self.pipe = condition, pipe
        if condition.theirs:
            parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
            self.pipe = StableDiffusionAttendAndExcitePipeline(
                **parts, requires_safety_checker=False
            )
        self.pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(1)
        self.call: dict[str, Any] = {k: v.to(device) for k, v in unet_call().items()}
        if condition.theirs:
            self.call |= {"prompt": None, "token_indices": list(TOKENS), "thresholds": {}}

    def step(self, options: argparse.Namespace) -> float:
        """The seconds that a step takes, attaching not included."""
        call = partial(
            self.pipe, **self.call, num_inference_steps=1, guidance_scale=5.0, output_type="latent"
        )
        if self.condition.attach is None:
            return seconds(call, options)
        with regaze.attach(self.pipe, self.condition.attach) as run, _whole(self.condition.whole):
            taken = seconds(call, options)
        if not run.report().fired:
            raise RuntimeError(f"{self.condition.name} didn't act: {run.report()}")
        return taken


@contextmanager
def _whole(whole: bool) -> Iterator[None]:
    """Let gradient passes run to the denoiser's end."""
    stock: Any = text_maps.Reader

    def reader(*args: Any, stop: bool) -> Any:
        return stock(*args, stop=False)

    with mock.patch.object(gradients, "Reader", reader) if whole else nullcontext():
        yield


def measure(options: argparse.Namespace, tick: Any) -> dict[str, list[float]]:
    """Seconds of each round, by condition."""
    pipe = unet(options.device)
    runners = [Runner(pipe, condition, options.device) for condition in CONDITIONS]
    steps = {runner.condition.name: partial(runner.step, options) for runner in runners}
    return side_by_side(steps, options.rounds, warm_up=1, tick=tick)


def measure_memory(name: str, options: argparse.Namespace) -> int | None:
    """Bytes that a step takes at its peak, above the loaded model."""
    condition = next(c for c in CONDITIONS if c.name == name)
    runner = Runner(unet(options.device), condition, options.device)
    runner.step(options)
    return peak_memory(partial(runner.step, options), options.device)


def tell(times: Mapping[str, list[float]], peaks: Mapping[str, int | None]) -> Table:
    """Ratios to the plain step and to diffusers' one; peaks in MiB."""
    table = make_table("", ("", "/ plain", "/ diffusers", "target", "peak memory, MiB"))
    for condition in CONDITIONS:
        ratios = [Ratio.of(times[condition.name], times[base]) for base in ("plain", THEIRS)]
        peak = peaks.get(condition.name)
        table.add_row(
            condition.name,
            *(str(ratio or "") for ratio in ratios),
            "" if condition.target is None else f"{condition.target:.2f}",
            f"{peak / 2**20:.0f}" if peak else "",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-memory", action="store_true")
    options = parse(parser)
    console = Console()
    console.print(describe(options))
    with Progress(console=console, transient=True) as progress:
        names = [] if options.no_memory else [c.name for c in CONDITIONS]
        task = progress.add_task("latents", total=options.rounds + 1 + len(names))
        tick = partial(progress.advance, task)
        times = measure(options, tick)
        peaks = {}
        for name in names:
            peaks[name] = in_fresh_process(options.threads, measure_memory, name, options)
            tick()
    console.print(tell(times, peaks))


if __name__ == "__main__":
    main()
