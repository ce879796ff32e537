"""The cost of ConsistEdit in a sampling step of source and edit, beside the same batch without it.

Ratios of rounds in which all take turns, with classifier-free guidance: four rows. It is to cost no
more than 1.05 times the plain batch. The report's effect is measured in the calls 1, 2, 4, 8, 16 of
a layer, by one more run of the kernel on the edits' rows; "a run of 28" is the mean with these.

Run:  python -m benchmarks.consist_edit [--threads 1] [--device cpu] [--clock cpu] [--rounds 6]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
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
from benchmarks.perturbation import TEXT, dit_call

MASK = [[32 <= row < 56 and 8 <= column < 40 for column in range(64)] for row in range(64)]
STEPS, MEASURED = 28, 5


def dit(device: str) -> StableDiffusion3Pipeline:
    """An SD3-like pipeline of few layers: all of them cost the same."""
    torch.manual_seed(0)
    with torch.device(device):
        model = SD3Transformer2DModel(
            sample_size=64, num_layers=4, attention_head_dim=64, num_attention_heads=6,
            joint_attention_dim=256, caption_projection_dim=384, pooled_projection_dim=256,
        )  # fmt: skip
    return StableDiffusion3Pipeline(model.eval(), FlowMatchEulerDiscreteScheduler(), *[None] * 7)


class Runs:
    """Steps under one condition, attached for good: the first, which is measured, and later ones.

    Args:
        pipe: The pipeline.
        call: Arguments of a pair.
        spec: Spec to attach; None attaches nothing.
        options: Options of the command line.
    """

    def __init__(
        self, pipe: Any, call: dict[str, Tensor], spec: Any, options: argparse.Namespace
    ) -> None:
        self._pipe, self._spec, self._options = pipe, spec, options
        self._run = partial(
            pipe, **call, guidance_scale=5.0, num_inference_steps=1, output_type="latent"
        )

    def step(self) -> float:
        """Seconds of a step that isn't measured: the third."""
        return self._times(3)[-1]

    def first(self) -> float:
        """Seconds of a step that is."""
        return self._times(1)[0]

    def _times(self, count: int) -> list[float]:
        specs = [] if self._spec is None else [self._spec]
        with regaze.attach(self._pipe, *specs), torch.inference_mode():
            return [seconds(self._run, self._options) for _ in range(count)]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    options = parse(parser)
    console = Console()
    console.print(describe(options), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        pipe: Any = dit(options.device)
        pipe.set_progress_bar_config(disable=True)
        call = {
            name: torch.cat([x, x if name == "latents" else x.flip(-1)]).to(options.device)
            for name, x in dit_call().items()
        }
        specs = {
            "plain": None,
            "all of queries and keys": regaze.ConsistEdit(mask=MASK),
            "by the mask": regaze.ConsistEdit(mask=MASK, strength=0.0),
            "mask read meanwhile": regaze.ConsistEdit(words=(1, 2, TEXT // 2)),
        }
        runs = {name: Runs(pipe, call, spec, options) for name, spec in specs.items()}
        steps = {(name, kind): getattr(one, kind) for name, one in runs.items()
                 for kind in (("step",) if name == "plain" else ("step", "first"))}  # fmt: skip
        times = side_by_side(steps, options.rounds)
        columns = ("", "a step", "a measured step", f"a run of {STEPS}")
        table = make_table("SD3-like, 64 x 64 latents, source and edit, to plain", columns)
        plain = times["plain", "step"]
        for name in list(specs)[1:]:
            one, first = times[name, "step"], times[name, "first"]
            mean = [
                ((STEPS - MEASURED) * a + MEASURED * b) / STEPS
                for a, b in zip(one, first, strict=True)
            ]
            table.add_row(name, *(str(Ratio.of(x, plain) or "") for x in (one, first, mean)))
        console.print(table)


if __name__ == "__main__":
    main()
