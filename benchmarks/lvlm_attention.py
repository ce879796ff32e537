"""The cost of attached interventions, beside the unmodified model and eager attention.

A LLaVA-shaped model with random weights reads one prompt: system text, 576 image columns, 50
question tokens. All conditions share the weights and take turns, one prefill or one decode step at
a time, so that noise and warmth of the machine reach all of them alike; a ratio is the median over
rounds of time / time of the unmodified model in the same round. Every method acts in every layer
(by default they leave some out), and VAR's thresholds are set so that it fires in all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import _llava
from benchmarks._llava import N_IMAGE, SHAPES, Shape
from benchmarks._lvlm_conditions import (
    N_QUESTION,
    TARGETS,
    Condition,
    Runner,
    build,
    conditions,
)
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
from regaze.evals.runs.files import write_text

# Eager attention is far from every target, and slow: a few rounds will do.
EAGER_ROUNDS = 2
WARM_UP = 3
Tick = Callable[[], None]


@dataclass
class Result:
    """Times of one condition at one prompt length.

    Attributes:
        prefill: Seconds of each round.
        decode: Seconds of each step.
        memory: Bytes at the peak, above the loaded model.
        heads: Share of (head, row) pairs that were edited.
        failed: Reason why there are no more rounds; empty if there is none.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: int | None = None
    heads: float | None = None
    failed: str = ""


def measure_times(
    runners: Sequence[Runner], length: int, options: argparse.Namespace, tick: Tick
) -> dict[str, Result]:
    """Prefill and decode times of all conditions, taking turns."""
    by_name = {runner.condition.name: runner for runner in runners}
    results = {name: Result() for name in by_name}
    prefills: Counter[str] = Counter()

    def step(name: str, what: str) -> float | None:
        runner, result = by_name[name], results[name]
        prefills[name] += what == "prefill"
        enough = runner.condition.attention == "eager" and prefills[name] > EAGER_ROUNDS
        if result.failed or (what == "prefill" and enough):
            return None
        try:
            return seconds(getattr(runner, what), options)
        except torch.OutOfMemoryError:
            result.failed, runner.caches = "out of memory", []
            return None

    for runner in runners:
        runner.prepare(length)
    runners[0].prefill()  # The first prefill of this length pays for the pages of all others.
    steps = {name: partial(step, name, "prefill") for name in by_name}
    for name, times in side_by_side(steps, rounds(length, options), tick=tick).items():
        results[name].prefill = times
    one_prompt = [name for name, runner in by_name.items() if runner.condition.blind == "no"]
    steps = {name: partial(step, name, "decode") for name in one_prompt}
    for name, times in side_by_side(steps, options.decode, warm_up=WARM_UP, tick=tick).items():
        results[name].decode = times
    for name, runner in by_name.items():
        results[name].heads = runner.share_of_heads()
        runner.caches = []
    return results


def rounds(length: int, options: argparse.Namespace) -> int:
    """Rounds of prefills: short prompts are cheap, so they get more."""
    return int(options.repeats * max(1, 2048 // length))


def measure_memory(model: Any, condition: Condition, length: int) -> int | None:
    """Bytes that a prefill and a decode step take at their peak, above the loaded model."""
    runner = Runner(model, condition)
    runner.prepare(N_IMAGE + N_QUESTION + 14)
    runner.prefill()
    runner.prepare(length)

    def work() -> None:
        runner.prefill()
        if condition.blind == "no":
            runner.decode()

    return peak_memory(work, model.device.type)


def measure_memory_here(options: argparse.Namespace, name: str, length: int) -> int | None:
    """`measure_memory` of a model built for it."""
    with torch.inference_mode():
        condition = next(c for c in conditions(options.size) if c.name == name)
        return measure_memory(build(options), condition, length)


# -- telling ------------------------------------------------------------------------------------


def tell(length: int, results: Mapping[str, Result], shape: Shape) -> Table:
    """The results at one prompt length, beside their targets."""
    system = length - N_IMAGE - N_QUESTION
    title = f"prompt {length} = {system} system + {N_IMAGE} image + {N_QUESTION} question tokens"
    columns = ("", "heads", "prefill", "/ sdpa", "decode step", "/ sdpa", "memory", "/ sdpa")
    table = make_table(title, columns)
    rows = [(c.name, c.name, "sdpa", c.judged) for c in conditions(shape) if c.name in results]
    # Reading the prompt without its image belongs to the method; overhead is what it adds to that.
    rows += [
        (f"VHR / {against.removeprefix('sdpa, ')}", "VHR", against, judged)
        for against, judged in (
            ("sdpa, 2 rows", ("prefill", "memory")),
            ("sdpa, 2 passes", ("prefill",)),
        )
        if "VHR" in results and against in results
    ]
    for label, name, against, judged in rows:
        mine, reference = results[name], results[against]
        if mine.failed:
            table.add_row(label, "", mine.failed)
            continue
        table.add_row(
            label,
            "" if mine.heads is None else f"{mine.heads:.0%}",
            *_times(mine.prefill, reference.prefill, "prefill", judged),
            *_times(mine.decode, reference.decode, "decode", judged),
            *_memory(mine.memory, reference.memory, judged),
        )
    return table


def _times(
    mine: Sequence[float], reference: Sequence[float], what: str, judged: Sequence[str]
) -> tuple[str, str]:
    ratio = Ratio.of(mine, reference)
    if ratio is None:
        return "", ""
    told = _judge(str(ratio), ratio.median, what, judged)
    return f"{1e3 * statistics.median(mine):.1f} ms", told


def _memory(mine: int | None, reference: int | None, judged: Sequence[str]) -> tuple[str, str]:
    if not mine or not reference:
        return "", ""
    ratio = mine / reference
    return f"{mine / 2**20:.0f} MB", _judge(f"{ratio:.3f}", ratio, "memory", judged)


def _judge(text: str, ratio: float, what: str, judged: Sequence[str]) -> str:
    if what not in judged:
        return f"{text}     "
    return f"[green]{text}   ok[/]" if ratio <= TARGETS[what] else f"[bold red]{text} MISS[/]"


def parse_options() -> argparse.Namespace:
    """Read the command line; ``size`` is the `Shape` that it asks for."""
    parser = make_parser(__doc__)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--layers", type=int, help="instead of the shape's")
    add("--hidden", type=int, help="instead of the shape's")
    add("--prompts", type=int, nargs="+", default=[640, 2048, 4096], help="prompt lengths")
    add("--decode", type=int, default=64, help="decode steps")
    add("--repeats", type=int, default=5, help="rounds of prefills")
    add("--only", nargs="+", metavar="NAME", help="of all conditions these and sdpa")
    add("--no-memory", action="store_true", help="times alone")
    add("--json", type=Path, help="write all numbers to this file")
    options = parse(parser)
    shortest = N_IMAGE + N_QUESTION + 1
    if min(options.prompts) < shortest:
        parser.error(f"--prompts: image, question and BOS already take {shortest} columns")
    given = {key: getattr(options, key) for key in ("layers", "hidden") if getattr(options, key)}
    options.size = replace(SHAPES[options.shape], **given)
    return options


def main() -> None:
    """Measure, print, save."""
    options = parse_options()
    wanted = options.only and {"sdpa", *options.only}
    every = [c for c in conditions(options.size) if not wanted or c.name in wanted]
    console = Console(width=max(110, Console().width))
    machine = describe(options)
    prefills = sum(rounds(length, options) for length in options.prompts)
    others = WARM_UP + options.decode + (0 if options.no_memory else len(every))
    results: dict[int, dict[str, Result]] = {}
    # Drawn only between measurements: a thread that refreshes it would disturb them.
    with torch.inference_mode(), Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=prefills + others * len(options.prompts))

        def tick() -> None:
            progress.update(task, advance=1, refresh=True)

        model = build(options)
        runners = [Runner(model, condition) for condition in every]
        for length in options.prompts:
            results[length] = measure_times(runners, length, options, tick)
        for length in () if options.no_memory else options.prompts:
            for condition in every:
                results[length][condition.name].memory = (
                    measure_memory(model, condition, length)
                    if options.device == "cuda"
                    else in_fresh_process(
                        options.threads, measure_memory_here, options, condition.name, length
                    )
                )
                tick()
    shape = options.size
    console.print(
        f"{shape.layers} layers, hidden {shape.hidden}, heads of {shape.head_dim}, "
        f"{model.dtype}; {machine}, transformers {transformers.__version__}",
        highlight=False,
    )
    for length in options.prompts:
        console.print(tell(length, results[length], shape))
    targets = ", ".join(f"{what} <= {most:.2f}" for what, most in TARGETS.items())
    console.print(f"Medians, ± half the distance between quartiles. Targets: {targets}.")
    if options.json:
        named = {n: {k: asdict(r) for k, r in by_name.items()} for n, by_name in results.items()}
        told = {"options": vars(options), "machine": machine, "results": named}
        write_text(options.json, json.dumps(told, indent=1, default=str))


if __name__ == "__main__":
    main()
