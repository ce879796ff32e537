"""The cost of a second text in a sampling step without guidance: NAG and Regions beside guidance.

Ratios to a plain step without classifier-free guidance, of rounds in which all take turns. NAG is
to cost no more than guidance would, and no more than with attention of all on all made twice, once
with each text, as the published node makes it.

Run:  python -m benchmarks.second_text [--threads 1] [--device cpu] [--rounds 10] [--only SD3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
)
from rich.console import Console
from torch import Tensor

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
from benchmarks.perturbation import TEXT, dit, dit_call, unet, unet_call

TWICE = "NAG, attention in full twice"
HALVES = [((0.0, 0.0, 0.5, 1.0), ""), ((0.5, 0.0, 1.0, 1.0), "")]


def flux(device: str) -> FluxPipeline:
    """A pipeline of FLUX's shape: a third of its blocks have two streams."""
    torch.manual_seed(0)
    with torch.device(device):
        model = FluxTransformer2DModel(
            num_layers=4, num_single_layers=8, attention_head_dim=64, num_attention_heads=6,
            joint_attention_dim=256, pooled_projection_dim=256, axes_dims_rope=(16, 24, 24),
        )  # fmt: skip
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), *[None] * 5, model.eval())


def flux_call() -> dict[str, Any]:
    """Arguments of a picture of 32 x 32 tokens."""
    call = {name: x for name, x in dit_call().items() if name != "latents"}
    return {**call, "latents": torch.randn(1, 1024, 64), "height": 512, "width": 512}


def methods(pipe: Any) -> dict[str, Any]:
    """The specs measured beside guidance, by name."""
    pooled = not isinstance(pipe, StableDiffusionPipeline)
    text: dict[str, Tensor] = {"text": torch.randn(1, TEXT, 256)}
    both = {"text": torch.randn(2, TEXT, 256)}
    if pooled:
        text["pooled"] = torch.randn(1, 256)
    found: dict[str, Any] = {"NAG": regaze.NAG(embeddings=text)}
    if pooled:
        found[TWICE] = found["NAG"]
        if not isinstance(pipe, FluxPipeline):
            found["NAG, shared text stream"] = regaze.NAG(embeddings=text, text_stream="shared")
    return found | {"Regions, two": regaze.Regions(HALVES, stop=1.0, embeddings=both)}


def step(
    pipe: Any, call: dict[str, Any], guided: bool, spec: Any, options: argparse.Namespace,
    twice: bool = False,
) -> float:  # fmt: skip
    """Seconds of one sampling step."""
    # Without the logarithms of its sums attention on both texts can't share what is the picture's.
    whole = mock.patch("regaze.interventions.diffusion.second_text.with_lse", _none)
    specs = [] if spec is None else [spec]
    with whole if twice else nullcontext(), regaze.attach(pipe, *specs), torch.inference_mode():
        scale = "true_cfg_scale" if isinstance(pipe, FluxPipeline) else "guidance_scale"
        guidance = {scale: 5.0 if guided else 1.0}
        run = partial(pipe, **call, **guidance, num_inference_steps=1, output_type="latent")
        return seconds(run, options)


def _none(*_: Any) -> None:
    return None


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="models whose name holds this, such as SD3")
    options = parse(parser)
    console = Console()
    console.print(describe(options), highlight=False)
    models: dict[str, tuple[Callable[[str], Any], Callable[[], Mapping[str, Any]]]] = {
        "U-Net, 64 x 64 latents": (unet, unet_call),
        "SD3-like, 64 x 64 latents": (dit, dit_call),
        "FLUX-like, 4 double and 8 single blocks": (flux, flux_call),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for title, (build, inputs) in models.items():
            if options.only not in title:
                continue
            pipe = build(options.device)
            pipe.set_progress_bar_config(disable=True)
            call = {name: x.to(options.device) if isinstance(x, Tensor) else x
                    for name, x in inputs().items()}  # fmt: skip
            specs = methods(pipe)
            steps = {
                "plain": partial(step, pipe, call, False, None, options),
                "guidance": partial(step, pipe, call, True, None, options),
                **{
                    name: partial(step, pipe, call, False, spec, options, name == TWICE)
                    for name, spec in specs.items()
                },
            }
            times = side_by_side(steps, options.rounds, warm_up=1, tick=lambda: None)
            table = make_table(title, ("", "to plain", "to guidance"))
            for name in steps:
                ratios = [Ratio.of(times[name], times[base]) for base in ("plain", "guidance")]
                table.add_row(name, *(str(ratio or "") for ratio in ratios))
            console.print(table)


if __name__ == "__main__":
    main()
