"""The cost of perturbation guidance in a sampling step, beside the plain pipeline.

A U-Net of Stable Diffusion's shape, narrower, at 64 x 64 latents, and an MM-DiT of SD3's shape at
1024 image tokens, both with random weights and classifier-free guidance. All conditions share the
weights and take turns, one step at a time, in rotating order; a ratio is the median over rounds of
time / time of the plain pipeline in the same round. diffusers' own PAG pipelines run beside ours.

Timed is the third step of an attachment: for the report each method measures its change in steps 1,
2, 4, 8 and so on, six of a run of fifty.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

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
from regaze.interventions import PAG, SoftPAG

TEXT = 77


@dataclass(frozen=True)
class Condition:
    """One way to take a step.

    Attributes:
        name: As printed.
        attach: Specs to attach, if any; an empty tuple makes an attachment of nothing.
        theirs: True if the step is that of diffusers' PAG pipeline.
        fork: True if branches may fork.
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
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(
        None, None, None, model.eval(), scheduler, None, None, requires_safety_checker=False
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

    def step(self, options: argparse.Namespace) -> float:
        """The seconds that a step takes, attaching not included."""
        more: dict[str, Any] = {"pag_scale": 3.0} if self.condition.theirs else {}
        call = partial(
            self.pipe, **self.call, **more, num_inference_steps=1, guidance_scale=5.0,
            output_type="latent",
        )  # fmt: skip
        if self.condition.attach is None:
            return self._last(call, options)
        with regaze.attach(self.pipe, *self.condition.attach, fork=self.condition.fork) as attached:
            taken = self._last(call, options)
        if not attached.report().fired:
            raise RuntimeError(f"{self.condition.name} didn't act: {attached.report()}")
        return taken

    @staticmethod
    def _last(call: Callable[[], object], options: argparse.Namespace) -> float:
        """The seconds of the last of some calls."""
        for _ in range(options.nth - 1):
            call()
        return seconds(call, options)


def measure(
    shape: Shape, options: argparse.Namespace, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each round, by condition."""
    pipe = shape.build(options.device)
    runners = [Runner(shape, pipe, condition, options.device) for condition in shape.conditions]
    steps = {runner.condition.name: partial(runner.step, options) for runner in runners}
    return side_by_side(steps, options.rounds, warm_up=1, tick=tick)


def measure_memory(shape_name: str, name: str, options: argparse.Namespace) -> int | None:
    """Bytes that a step takes at its peak, above the loaded model."""
    shape = SHAPES[shape_name]
    condition = next(c for c in shape.conditions if c.name == name)
    runner = Runner(shape, shape.build(options.device), condition, options.device)
    with torch.inference_mode():
        runner.step(options)
        return peak_memory(partial(runner.step, options), options.device)


# -- telling -----------------------------------------------------------------------------------


def tell(
    title: str, shape: Shape, times: Mapping[str, list[float]], peaks: Mapping[str, int | None]
) -> Table:
    """Ratios to the plain step."""
    table = make_table(title, ("", "step", "target", "peak memory"))
    for condition in shape.conditions:
        ratio = Ratio.of(times[condition.name], times["plain"])
        peak, base = peaks.get(condition.name), peaks.get("plain")
        table.add_row(
            condition.name,
            str(ratio or ""),
            "" if condition.target is None else f"{condition.target:.2f}",
            f"{peak / base:.2f}" if peak and base else "",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nth", type=int, default=3, help="step of an attachment that is timed")
    parser.add_argument("--shape", choices=list(SHAPES), action="append")
    parser.add_argument("--only", nargs="+", help="conditions beside the plain step")
    parser.add_argument("--no-memory", action="store_true")
    options = parse(parser)
    console = Console()
    console.print(f"{describe(options)}, diffusers {diffusers.__version__}", highlight=False)
    with Progress(console=console, transient=True) as progress:
        for name in options.shape or SHAPES:
            shape = SHAPES[name]
            if options.only:
                kept = ("plain", *options.only)
                found = tuple(c for c in shape.conditions if c.name in kept)
                shape = replace(shape, conditions=found)
            names = [] if options.no_memory else [c.name for c in shape.conditions]
            task = progress.add_task(name, total=options.rounds + 1 + len(names))
            tick = partial(progress.advance, task)
            times = measure(shape, options, tick)
            peaks: dict[str, int | None] = {}
            for each in names:
                peaks[each] = in_fresh_process(options.threads, measure_memory, name, each, options)
                tick()
            console.print(tell(name, shape, times, peaks))


if __name__ == "__main__":
    main()
