"""The cost of a second text in a sampling step without guidance: NAG and Regions beside guidance.

Ratios to a plain step without classifier-free guidance, of rounds in which all take turns. NAG is
to cost no more than guidance would, and no more than with attention of all on all made twice, once
with each text, as the published node makes it.

Run:  python -m benchmarks.second_text [--threads 1] [--device cpu] [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
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


def methods(pooled: bool) -> dict[str, Any]:
    """The specs measured beside guidance, by name."""
    text: dict[str, Tensor] = {"text": torch.randn(1, TEXT, 256)}
    both = {"text": torch.randn(2, TEXT, 256)}
    if pooled:
        text["pooled"] = torch.randn(1, 256)
    found: dict[str, Any] = {"NAG": regaze.NAG(embeddings=text)}
    if pooled:
        found[TWICE] = found["NAG"]
        found["NAG, shared text stream"] = regaze.NAG(embeddings=text, text_stream="shared")
    return found | {"Regions, two": regaze.Regions(HALVES, stop=1.0, embeddings=both)}


def step(
    pipe: Any, call: dict[str, Tensor], guidance: float, spec: Any, options: argparse.Namespace,
    twice: bool = False,
) -> float:  # fmt: skip
    """Seconds of one sampling step."""
    # Without the logarithms of its sums attention on both texts can't share what is the picture's.
    whole = mock.patch("regaze.interventions.diffusion.second_text.with_lse", _none)
    specs = [] if spec is None else [spec]
    with whole if twice else nullcontext(), regaze.attach(pipe, *specs), torch.inference_mode():
        run = partial(
            pipe, **call, guidance_scale=guidance, num_inference_steps=1, output_type="latent"
        )
        return seconds(run, options)


def _none(*_: Any) -> None:
    return None


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parse(parser)
    console = Console()
    console.print(describe(options), highlight=False)
    models: dict[str, tuple[Callable[[str], Any], Callable[[], dict[str, Tensor]], bool]] = {
        "U-Net, 64 x 64 latents": (unet, unet_call, False),
        "SD3-like, 64 x 64 latents": (dit, dit_call, True),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for title, (build, inputs, pooled) in models.items():
            pipe = build(options.device)
            pipe.set_progress_bar_config(disable=True)
            call = {name: x.to(options.device) for name, x in inputs().items()}
            specs = methods(pooled)
            steps = {
                "plain": partial(step, pipe, call, 1.0, None, options),
                "guidance": partial(step, pipe, call, 5.0, None, options),
                **{
                    name: partial(step, pipe, call, 1.0, spec, options, name == TWICE)
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
