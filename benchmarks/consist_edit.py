"""What ConsistEdit costs in a sampling step of source and edit, beside the same batch without it.

Ratios of rounds in which all take turns, with classifier-free guidance: four rows. It is to cost no
more than 1.05 times the plain batch.

Run:  python -m benchmarks.consist_edit [--threads 1] [--device cpu] [--clock cpu] [--rounds 10]
"""

from __future__ import annotations

import os
import tempfile
from functools import partial

import torch
from rich.console import Console

import regaze
from benchmarks._timing import Ratio, describe, make_parser, make_table, parse, side_by_side
from benchmarks.perturbation import TEXT, dit, dit_call
from benchmarks.second_text import step

MASK = [[32 <= row < 56 and 8 <= column < 40 for column in range(64)] for row in range(64)]


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parse(parser)
    console = Console()
    console.print(describe(options), highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        pipe = dit(options.device)
        pipe.set_progress_bar_config(disable=True)
        call = {
            name: torch.cat([x, x if name == "latents" else x.flip(-1)]).to(options.device)
            for name, x in dit_call().items()
        }
        specs = {
            "all of queries and keys": regaze.ConsistEdit(mask=MASK),
            "by the mask": regaze.ConsistEdit(mask=MASK, strength=0.0),
            "mask read meanwhile": regaze.ConsistEdit(words=(1, 2, TEXT // 2)),
        }
        steps = {
            "plain": partial(step, pipe, call, 5.0, None, options),
            **{n: partial(step, pipe, call, 5.0, spec, options) for n, spec in specs.items()},
        }
        times = side_by_side(steps, options.rounds, warm_up=1)
        table = make_table("SD3-like, 64 x 64 latents, source and edit", ("", "to plain"))
        for name in steps:
            table.add_row(name, str(Ratio.of(times[name], times["plain"]) or ""))
        console.print(table)


if __name__ == "__main__":
    main()
