"""What guidance by perturbation costs a sampling step, beside the plain pipeline, in one run.

A U-Net of Stable Diffusion's shape, narrower, at 64 x 64 latents, and an MM-DiT of SD3's shape at
1024 image tokens, both with random weights and classifier-free guidance. All conditions share the
weights and take turns, one step at a time, in rotating order; a ratio is the median over rounds of
time / time of the plain pipeline in the same round. diffusers' own PAG pipelines run beside ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from lvlm_attention import Ratio, _resident
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import regaze
from regaze.interventions import PAG, SoftPAG

TEXT = 77


@dataclass(frozen=True)
class Condition:
    """One way to take a step.

    Attributes:
        name: As printed.
        attach: What is attached, if anything is; without specs, an attachment of nothing.
        theirs: Whether it is diffusers' PAG pipeline.
        fork: Whether branches may fork.
        target: Ratio to the plain step that is aimed at.
    """

    name: str
    attach: tuple[Any, ...] | None = None
    theirs: bool = False
    fork: bool = True
    target: float | None = None


@dataclass(frozen=True)
class Shape:
    """A model, and the conditions that it is measured under."""

    build: Callable[[str], Any]
    theirs: Callable[[Any], Any]
    call: Callable[[], dict[str, Tensor]]
    conditions: tuple[Condition, ...]


# -- the models --------------------------------------------------------------------------------


def unet(device: str) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    with torch.device(device):
        model = UNet2DConditionModel(
            sample_size=64, block_out_channels=(64, 128, 256, 256), cross_attention_dim=256,
            attention_head_dim=8, norm_num_groups=32,
        )  # fmt: skip
    return StableDiffusionPipeline(
        None, None, None, model.eval(), DDIMScheduler(), None, None, requires_safety_checker=False
    )


def unet_theirs(pipe: Any) -> StableDiffusionPAGPipeline:
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    return StableDiffusionPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers="mid"
    )


def unet_call() -> dict[str, Tensor]:
    return {
        "prompt_embeds": torch.randn(1, TEXT, 256), "latents": torch.randn(1, 4, 64, 64),
        "negative_prompt_embeds": torch.randn(1, TEXT, 256),
    }  # fmt: skip


def dit(device: str) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    with torch.device(device):
        model = SD3Transformer2DModel(
            sample_size=64, num_layers=12, attention_head_dim=64, num_attention_heads=6,
            joint_attention_dim=256, caption_projection_dim=384, pooled_projection_dim=256,
        )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    return StableDiffusion3Pipeline(model.eval(), scheduler, *[None] * 7)


def dit_theirs(pipe: Any) -> StableDiffusion3PAGPipeline:
    return StableDiffusion3PAGPipeline(
        pipe.transformer, pipe.scheduler, *[None] * 7, pag_applied_layers=r"blocks.(8|9|10|11)"
    )


def dit_call() -> dict[str, Tensor]:
    return {
        "prompt_embeds": torch.randn(1, TEXT, 256), "pooled_prompt_embeds": torch.randn(1, 256),
        "negative_prompt_embeds": torch.randn(1, TEXT, 256),
        "negative_pooled_prompt_embeds": torch.randn(1, 256),
        "latents": torch.randn(1, 16, 64, 64),
    }  # fmt: skip


LAST = (8, 9, 10, 11)
SHAPES = {
    "U-Net, middle block": Shape(
        unet, unet_theirs, unet_call,
        (
            Condition("plain"),
            Condition("attached, nothing", (), target=1.0),
            Condition("attached, scale 0", (PAG(scale=0),), target=1.0),
            Condition("PAG", (PAG(),), target=1.36),
            Condition("SoftPAG, all heads", (SoftPAG(),), target=1.36),
            Condition("PAG, without fork", (PAG(),), fork=False),
            Condition("diffusers PAG pipeline", theirs=True),
        ),
    ),
    "MM-DiT, last third of the blocks": Shape(
        dit, dit_theirs, dit_call,
        (
            Condition("plain"),
            Condition("attached, nothing", (), target=1.0),
            Condition("PAG", (PAG(layers=LAST),), target=1.22),
            Condition("PAG, variant image", (PAG(layers=LAST, variant="image"),), target=1.22),
            Condition("SoftPAG, all heads", (SoftPAG(layers=LAST),), target=1.22),
            Condition("PAG, without fork", (PAG(layers=LAST),), fork=False),
            Condition("diffusers PAG pipeline", theirs=True),
        ),
    ),
}  # fmt: skip


# -- measuring ---------------------------------------------------------------------------------


class Runner:
    """A pipeline under one condition; `step` takes one sampling step."""

    def __init__(self, shape: Shape, pipe: Any, condition: Condition, device: str) -> None:
        self.condition = condition
        self.pipe = shape.theirs(pipe) if condition.theirs else pipe
        self.pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(1)
        self.call = {name: value.to(device) for name, value in shape.call().items()}

    def step(self, clock: Callable[[], float], device: str) -> float:
        """The time that a step takes, attaching not included."""
        more: dict[str, Any] = {"pag_scale": 3.0} if self.condition.theirs else {}
        specs = self.condition.attach
        attached = None
        if specs is not None:
            attached = regaze.attach(self.pipe, *specs, fork=self.condition.fork)
        try:
            wait_for(device)
            start = clock()
            self.pipe(
                **self.call, num_inference_steps=1, guidance_scale=5.0, output_type="latent", **more
            )
            wait_for(device)
            taken = clock() - start
        finally:
            if attached is not None:
                attached.detach()
        if attached is not None and not attached.report().fired:
            raise RuntimeError(f"{self.condition.name} didn't act: {attached.report()}")
        return taken


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(shape: Shape, options: Any, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each round, by condition."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    pipe = shape.build(options.device)
    runners = [Runner(shape, pipe, condition, options.device) for condition in shape.conditions]
    times: dict[str, list[float]] = {c.name: [] for c in shape.conditions}
    for number in range(-1, options.rounds):
        # Whoever comes after a slow one finds cold caches, so the order rotates.
        first = number % len(runners)
        for runner in [*runners[first:], *runners[:first]]:
            taken = runner.step(clock, options.device)
            if number >= 0:  # The round before the first one warms up.
                times[runner.condition.name].append(taken)
        tick()
    return times


def peak_memory(shape_name: str, name: str, threads: int, device: str) -> int | None:
    """Bytes that a step takes at its peak, above the loaded model; in a fresh process on a CPU."""
    torch.set_num_threads(threads)
    shape = SHAPES[shape_name]
    condition = next(c for c in shape.conditions if c.name == name)
    runner = Runner(shape, shape.build(device), condition, device)
    with torch.inference_mode():
        runner.step(time.process_time, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before: int | None = torch.cuda.memory_allocated()
        else:
            before = _resident("VmRSS", reset_peak=True)
        runner.step(time.process_time, device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    return None if before is None or peak is None else peak - before


def measure_memory(
    shape_name: str, names: Sequence[str], options: Any, tick: Callable[[], None]
) -> dict[str, int | None]:
    """`peak_memory` of every condition."""
    # Freed tensors go back to the system at once, so that the peak is that of live ones.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            job = fresh.submit(peak_memory, shape_name, name, options.threads, options.device)
            peaks[name] = job.result()
        tick()
    return peaks


# -- telling -----------------------------------------------------------------------------------


def table(
    title: str, shape: Shape, times: Mapping[str, list[float]], peaks: Mapping[str, int | None]
) -> Table:
    """Ratios to the plain step."""
    out = Table("", "step", "target", "peak memory", title=title)
    plain = times["plain"]
    for condition in shape.conditions:
        ratio = Ratio.of(times[condition.name], plain)
        peak, base = peaks.get(condition.name), peaks.get("plain")
        out.add_row(
            condition.name,
            "" if ratio is None else f"{ratio.median:.2f} ± {ratio.spread:.2f}",
            "" if condition.target is None else f"{condition.target:.2f}",
            f"{peak / base:.2f}" if peak and base else "",
        )
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), action="append")
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = options.shape or list(SHAPES)
    console = Console()
    console.print(
        f"{platform.machine()} {options.device}, {options.threads} threads, {options.clock} clock; "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    with Progress(console=console, transient=True) as progress:
        for name in chosen:
            shape = SHAPES[name]
            names = [c.name for c in shape.conditions]
            rows = 0 if options.no_memory else len(names)
            task = progress.add_task(name, total=options.rounds + 1 + rows)
            times = measure(shape, options, partial(progress.advance, task))
            peaks: dict[str, int | None] = {}
            if not options.no_memory:
                peaks = measure_memory(name, names, options, partial(progress.advance, task))
            console.print(table(name, shape, times, peaks))


if __name__ == "__main__":
    main()
