"""The cost of reading the vision tower: the tower with PAINT, which ranks patches by its rows.

A CLIP-shaped tower with random weights encodes pictures of 576 patches; PAINT reads the class
token's row, or with ``scores="received"`` whole maps of one layer, in pieces. Conditions share the
weights and take turns; a ratio is the median over rounds of time / time of the plain tower.

Target: at most 1.05.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

import regaze
from benchmarks import _llava
from benchmarks._lvlm_conditions import N_QUESTION, make_prompts
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)
from regaze.interventions import PAINT, Intervention

TARGET = 1.05
CONDITIONS: dict[str, Intervention | None] = {
    "plain": None,
    "PAINT": PAINT(),
    "PAINT, received": PAINT(scores="received"),
}


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--vision-layers", type=int, default=6)
    add("--vision-hidden", type=int, default=512)
    add("--rounds", type=int, default=10)
    options = parse(parser)
    # The text tower is next to nothing, so that the whole pass is the vision tower's.
    small = replace(_llava.SHAPES["small"], layers=1, hidden=64)
    shape = replace(small, vision_layers=options.vision_layers, vision_hidden=options.vision_hidden)
    with torch.inference_mode():
        model = _llava.build(shape, shape.vocab - 1, options)
        prompt = make_prompts(model, _llava.N_IMAGE + N_QUESTION + 1, "no")[0]

        def step(spec: Intervention | None) -> Callable[[], float]:
            twin: Any = copy.deepcopy(model, {id(p): p for p in model.parameters()})
            if spec is not None:
                regaze.attach(twin, spec)
            return lambda: seconds(lambda: twin(**prompt, logits_to_keep=1), options)

        times = side_by_side(
            {name: step(spec) for name, spec in CONDITIONS.items()}, options.rounds, warm_up=2
        )
    table = make_table("One picture", ("", "whole pass", "/ plain"))
    for name, taken in times.items():
        ratio = Ratio.of(taken, times["plain"])
        late = ratio is not None and ratio.median > TARGET
        table.add_row(name, f"{1e3 * statistics.median(taken):.0f} ms", f"{ratio}{' MISS' * late}")
    console = Console(width=100)
    console.print(
        f"{shape.vision_layers} layers, hidden {shape.vision_hidden}; {describe(options)}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
