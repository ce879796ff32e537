"""The cost of flow-warped attention in a sampling step with a ControlNet, beside the plain one.

A U-Net and a ControlNet of Stable Diffusion's shape at half its width (heads of the same size, half
as many), random weights, 512 x 512 pixels: 4096 tokens in the finest layers. A clip's frames are
one batch. All conditions share the weights and take turns, one step at a time, in rotating order; a
ratio is the median over rounds of time / time of the plain step in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from rich.console import Console
from rich.progress import Progress

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
from regaze.interventions.diffusion.flow import Flow, write

SIDE, TEXT, WIDTH = 512, 77, 384
TARGET = 1.15

CONDITIONS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "attached, weight 0": {"weight": 0},
    "FlowWarp": {},
    "FlowWarp, axis=both": {"axis": "both"},
    "FlowWarp, recursive": {"recursive": True},
    "maps built in these layers, unedited": None,
}
MAPS = list(CONDITIONS)[-1]


def build(options: argparse.Namespace) -> Any:
    """The pipeline."""
    torch.manual_seed(0)
    with torch.device(options.device):
        unet: Any = UNet2DConditionModel(
            sample_size=SIDE // 8, block_out_channels=(160, 320, 640, 640), attention_head_dim=4,
            cross_attention_dim=WIDTH,
        )  # fmt: skip
        # Never run: it only says that a latent cell is 8 pixels wide.
        vae: Any = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4), norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    controlnet = ControlNetModel.from_unet(unet).to(options.device)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = StableDiffusionControlNetPipeline(
        vae, None, None, unet.eval(), controlnet.eval(), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, options: argparse.Namespace) -> Callable[[], object]:
    """One step of a clip, without classifier-free guidance: branches cost the same."""
    torch.manual_seed(1)
    noise, text = torch.randn(1, 4, SIDE // 8, SIDE // 8), torch.randn(1, TEXT, WIDTH)
    call = {
        "prompt_embeds": text.expand(options.frames, -1, -1),
        "latents": noise.expand(options.frames, -1, -1, -1),
        "image": torch.rand(options.frames, 3, SIDE, SIDE),
    }
    return partial(
        pipe, **{k: v.to(options.device) for k, v in call.items()}, num_inference_steps=1,
        guidance_scale=1.0, output_type="latent",
    )  # fmt: skip


def step(
    pipe: Any, name: str, flow: Path, measured: Callable[[Callable[[], object]], Any],
    options: argparse.Namespace,
) -> Any:  # fmt: skip
    """``measured`` applied to one step under a condition, attaching not included."""
    fields = CONDITIONS[name]
    with ExitStack() as stack:
        run: Any = None
        if name == MAPS:
            stock = pipe.unet.attn_processors
            stack.callback(pipe.unet.set_attn_processor, stock)
            explicit = {n: AttnProcessor() for n in stock if n.startswith("up_") and ".attn1." in n}
            pipe.unet.set_attn_processor({**stock, **explicit})
        elif fields is not None:
            spec = regaze.FlowWarp(flow=str(flow), **fields)
            run = stack.enter_context(regaze.attach(pipe, spec))
        taken = measured(paint(pipe, options))
    if run is not None and not run.report().fired:
        raise RuntimeError(f"{name} didn't act: {run.report()}")
    return taken


def measure_memory(name: str, flow: Path, options: argparse.Namespace) -> int | None:
    """Bytes that a step takes at its peak, above the loaded model."""
    pipe = build(options)
    with torch.inference_mode():
        small = argparse.Namespace(**{**vars(options), "frames": 1})
        paint(pipe, small)()
        measured = partial(peak_memory, device=options.device)
        peak: int | None = step(pipe, name, flow, measured, options)
        return peak


def moving(frames: int) -> Flow:
    """A disc of a quarter of the picture that moves by a few pixels a frame."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    disc = (x**2 + y**2 < SIDE**2 / 12)[..., None]
    return Flow(np.stack([np.where(disc, np.array([-9, 5], np.float32), 0)] * (frames - 1)))


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--only", choices=list(CONDITIONS)[1:], action="append")
    parser.add_argument("--no-memory", action="store_true")
    options = parse(parser)
    console = Console()
    console.print(f"{describe(options)}, diffusers {diffusers.__version__}", highlight=False)
    names = ["plain", *(options.only or list(CONDITIONS)[1:])]
    rows = [] if options.no_memory else names
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as bar:
        flow = Path(folder) / "flow.npz"
        write(flow, moving(options.frames))
        task = bar.add_task("steps", total=options.rounds + 1 + len(rows))
        tick = partial(bar.advance, task)
        timed = partial(seconds, options=options)
        pipe = build(options)
        steps = {n: partial(step, pipe, n, flow, timed, options) for n in names}
        times = side_by_side(steps, options.rounds, warm_up=1, tick=tick)
        del pipe, steps
        peaks: dict[str, int | None] = {}
        for name in rows:
            peaks[name] = in_fresh_process(options.threads, measure_memory, name, flow, options)
            tick()
    table = make_table(f"{options.frames} frames, step", ("", "step", "target", "peak memory"))
    for name in names:
        peak, base = peaks.get(name), peaks.get("plain")
        table.add_row(
            name,
            str(Ratio.of(times[name], times["plain"]) or ""),
            f"{TARGET:.2f}" if name == "FlowWarp" else "",
            f"{peak / base:.2f}" if peak and base else "",
        )
    console.print(table)


if __name__ == "__main__":
    main()
