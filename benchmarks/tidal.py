"""Decode steps with TidalDecode beside the unmodified model's, over long prompts.

A language tower of the shape of LLaVA's, with random weights, on a prompt without a picture. Stock
decoding reads all keys and values in every layer; TidalDecode reads them in the layers that select,
and a few hundred columns in the others.

Target: below 1.0 at 8192 columns.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from rich.console import Console
from transformers import DynamicCache, StaticCache

import regaze
from benchmarks import _llava
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)
from regaze.interventions import TidalDecode

LENGTHS = (2048, 8192, 16384)
TARGET, TARGET_AT = 1.0, 8192


def main() -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=LENGTHS, help="columns in the cache")
    add("--budget", type=int, default=256, help="columns that each head keeps")
    add("--layers", type=int, default=16, help="layers of the model")
    add("--rounds", type=int, default=12, help="decode steps that count")
    add("--static", action="store_true", help="a static cache, which isn't copied at each step")
    options = parse(parser)
    shape = _llava.SHAPES[options.shape]
    shape = _llava.Shape(**{**vars(shape), "layers": options.layers})
    model = _llava.build(shape, shape.vocab - 1, options)
    spec = TidalDecode(budget=options.budget)
    table = make_table(
        f"One decode step: seconds and ratio to the unmodified model\n{describe(options)}, "
        f"{options.layers} layers of hidden size {shape.hidden}",
        ["columns", "unmodified", "tidal", "ratio", ""],
    )
    for length in options.lengths:
        times = measure(model, spec, length, options)
        plain, tidal = times["plain"], times["tidal"]
        ratio = Ratio.of(tidal, plain)
        if ratio is None:
            continue
        judged = ""
        if length == TARGET_AT:
            judged = "ok" if ratio.median < TARGET else f"target {TARGET}"
        middle = [f"{sorted(t)[len(t) // 2] * 1000:.1f} ms" for t in (plain, tidal)]
        table.add_row(str(length), *middle, str(ratio), judged)
    Console().print(table)


@torch.no_grad()
def measure(
    model: Any, spec: TidalDecode, length: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each step, by condition."""
    ids = torch.full((1, 1), 5, device=model.device)
    works = {}
    for name in ("plain", "tidal"):
        mine = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        if name == "tidal":
            regaze.attach(mine, spec)
        cache = prefilled(mine, length, options)
        works[name] = lambda mine=mine, cache=cache: seconds(
            lambda: mine(input_ids=ids, past_key_values=cache, logits_to_keep=1), options
        )
    return side_by_side(works, options.rounds, warm_up=3)


def prefilled(model: Any, length: int, options: argparse.Namespace) -> Any:
    """A cache that holds a prompt of so many columns."""
    config = model.config.text_config
    if options.static:
        cache: Any = StaticCache(config=config, max_cache_len=length + options.rounds + 8)
    else:
        cache = DynamicCache(config=config)
    ids = torch.randint(3, 99, (1, length), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids.to(model.device), past_key_values=cache, logits_to_keep=1)
    return cache


if __name__ == "__main__":
    main()
