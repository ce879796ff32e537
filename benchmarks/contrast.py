"""The cost of contrasted next-token scores and of GIFT: a whole answer beside the plain model's.

A LLaVA-shaped model with random weights reads one prompt (system text, 576 image columns, 50
question tokens) and answers in 32 tokens. Conditions share the weights and take turns, answer by
answer; a ratio is the median over rounds of time / time of the plain model in the same round. With
``--beside`` second runs go beside the main one in every step, instead of sharing its batch.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from transformers import DynamicCache

import regaze
from benchmarks import _llava
from benchmarks._llava import SHAPES
from benchmarks._lvlm_conditions import build, make_prompts
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)
from regaze.hooks import scores
from regaze.interventions import GIFT, ICD, M3ID, PAI, VCD, AvisC, DoLa, Intervention

TARGETS = {"GIFT": 1.1}
TARGET = 2.0
WORDS = 20


class Tokenizer:
    """Makes some tokens of any text."""

    bos_token_id, pad_token_id = 1, 0
    all_special_ids = (0, 1)

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        """Token ids of a disturbance of usual length."""
        return SimpleNamespace(input_ids=list(range(3, 3 + WORDS)))


def conditions(layers: int) -> dict[str, Intervention | None]:
    """The specs measured, without the cut, which would leave a random model one token to choose."""
    return {
        "plain": None,
        "VCD": VCD(),
        "VCD + PAI": VCD(),
        "ICD": ICD(),
        "AvisC": AvisC(),
        "M3ID": M3ID(),
        "PAI, gamma 1.1": PAI(gamma=1.1, layers=tuple(range(layers))),
        "DoLa": DoLa(candidates=tuple(range(0, layers, 2))),
        "GIFT": GIFT(layers=tuple(range(1, layers)), saliency=(0,), words="all", trim=(0, 0)),
    }


class Answer:
    """An answer under one condition, by a copy of the model that shares its weights.

    Attributes:
        prefill: Seconds until the first token.
        decode: Seconds after it.
    """

    def __init__(self, model: Any, name: str, options: argparse.Namespace) -> None:
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.options, self.prefill, self.decode = options, 0.0, 0.0
        spec = conditions(options.size.layers)[name]
        specs = [] if spec is None else [spec]
        if name.endswith("+ PAI"):
            specs.append(PAI(layers=tuple(range(options.size.layers))))
        if specs:
            regaze.attach(self.model, *specs, processor=Tokenizer())
        self.prompt = make_prompts(self.model, options.prompt, "no")[0]

    def __call__(self) -> float:
        """Answer once; the seconds that it took."""
        cache = DynamicCache(config=self.model.config.text_config)
        length, told = self.options.prompt, {"past_key_values": cache, "logits_to_keep": 1}
        self.prefill = seconds(lambda: self.model(**self.prompt, **told), self.options)
        new = self.prompt["input_ids"][:, -1:]

        def decode() -> None:
            for column in range(length, length + self.options.tokens - 1):
                at = torch.tensor([[column]], device=new.device)
                self.model(input_ids=new, position_ids=at, **told)

        self.decode = seconds(decode, self.options)
        return self.prefill + self.decode


def measure(answers: Mapping[str, Answer], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round: in all, until the first token, and after it."""
    parts: dict[str, dict[str, list[float]]] = {n: {"prefill": [], "decode": []} for n in answers}

    def step(name: str) -> Callable[[], float]:
        def work() -> float:
            taken = answers[name]()
            parts[name]["prefill"].append(answers[name].prefill)
            parts[name]["decode"].append(answers[name].decode)
            return taken

        return work

    whole = side_by_side({name: step(name) for name in answers}, rounds, warm_up=1)
    return {
        name: {"in all": whole[name], **{k: v[1:] for k, v in parts[name].items()}}
        for name in answers
    }


def parse_options() -> argparse.Namespace:
    """Read the command line; ``size`` is the `Shape` that it asks for."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--hidden", type=int, help="instead of the shape's")
    add("--layers", type=int, help="instead of the shape's")
    add("--prompt", type=int, default=640, help="prompt length")
    add("--tokens", type=int, default=32, help="tokens of the answer")
    add("--rounds", type=int, default=5)
    add("--only", nargs="+", default=[], help="conditions beside plain")
    add("--beside", action="store_true", help="second runs beside the main one, as before")
    options = parse(parser)
    given = {key: getattr(options, key) for key in ("layers", "hidden") if getattr(options, key)}
    options.size = replace(SHAPES[options.shape], **given)
    return options


def main() -> None:
    """Measure and print."""
    options = parse_options()
    names = [n for n in conditions(1) if n == "plain" or not options.only or n in options.only]
    way: Any = nullcontext()
    if options.beside:
        way = mock.patch.object(scores, "joinable", lambda *_: False)
    with torch.inference_mode(), way:
        model = build(options)
        found = measure({name: Answer(model, name, options) for name in names}, options.rounds)
    shape = options.size
    where = "beside the main run" if options.beside else "in the main run's batch"
    title = f"{options.tokens} tokens behind {options.prompt}; second runs {where}"
    table = make_table(title, ("", "in all", "/ plain", "prefill", "/ plain", "decode", "/ plain"))
    for name, times in found.items():
        cells = []
        for part, taken in times.items():
            ratio = Ratio.of(taken, found["plain"][part])
            most = TARGETS.get(name, TARGET)
            late = part == "in all" and ratio is not None and ratio.median > most
            cells += [f"{1e3 * statistics.median(taken):.0f} ms", f"{ratio}{' MISS' * late}"]
        table.add_row(name, *cells)
    console = Console(width=max(110, Console().width))
    console.print(f"{shape.layers} layers, hidden {shape.hidden}; {describe(options)}")
    console.print(table)
    console.print(
        f"Medians, ± half the distance between quartiles. Target: in all <= {TARGET:.1f}; "
        f"GIFT {TARGETS['GIFT']:.1f}."
    )


if __name__ == "__main__":
    main()
