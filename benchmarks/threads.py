"""The time of two threads that share one attached model, beside two that share the plain one.

A small server runs `generate` in as many threads as it has requests. Kernels of two threads run
side by side, Python doesn't, so whatever runs in Python weighs more than in one thread. A
LLaVA-shaped model with random weights answers one prompt in each thread, both at once. All
conditions share the weights and take turns, one answer at a time, in rotating order; a ratio is the
median over rounds of time / time of the unmodified model in the same round. Every method acts in
every layer.
"""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import _llava
from benchmarks._llava import N_IMAGE, SHAPES
from benchmarks._lvlm_conditions import N_QUESTION, Runner, build, conditions, make_prompts
from benchmarks._timing import (
    Ratio,
    describe,
    make_parser,
    make_table,
    parse,
    seconds,
    side_by_side,
)

METHODS = ("VAR", "PAI", "VAF", "VHR")
PLAIN = "sdpa"
TARGET = 1.03
ALONE, TOGETHER = 1, 2


def answer(model: Any, prompt: Mapping[str, Any], tokens: int) -> None:
    """Generate so many tokens, whatever they say."""
    model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Do several things, each in a thread of its own.

    Raises:
        BaseException: What the first one that failed raised.
    """
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def work(job: Callable[[], object]) -> None:
        try:
            ready.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def measure(
    runners: Sequence[Runner], options: argparse.Namespace, tick: Callable[[], object]
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each round, by condition and number of threads."""
    prompts = [make_prompts(runners[0].model, options.prompt + i, "no")[0] for i in (0, 1)]

    def step(runner: Runner, count: int) -> float:
        jobs = [partial(answer, runner.model, prompt, options.tokens) for prompt in prompts[:count]]
        return seconds(partial(at_once, jobs), options)

    steps = {
        (runner.condition.name, count): partial(step, runner, count)
        for count in (ALONE, TOGETHER)
        for runner in runners
    }
    times = side_by_side(steps, options.repeats, warm_up=1, tick=tick)
    for runner in runners:
        runner.share_of_heads()  # It raises if a layer was left out.
    return times


def tell(times: Mapping[tuple[str, int], Sequence[float]], options: argparse.Namespace) -> Table:
    """The results beside the plain model's."""
    title = f"prompts of {options.prompt} tokens, {options.tokens} generated"
    columns = ("", "one thread", "/ plain", "two threads", "/ plain", "two / one")
    table = make_table(title, columns)
    for name in dict.fromkeys(name for name, _ in times):
        row = []
        for count in (ALONE, TOGETHER):
            ratio = Ratio.of(times[name, count], times[PLAIN, count])
            told = str(ratio or "")
            if count == TOGETHER and ratio is not None and name != PLAIN:
                met = ratio.median <= TARGET
                told = f"[green]{told}   ok[/]" if met else f"[bold red]{told} MISS[/]"
            row += [f"{1e3 * statistics.median(times[name, count]):.0f} ms", told]
        both = Ratio.of(times[name, TOGETHER], times[name, ALONE])
        table.add_row(name, *row, str(both or ""))
    return table


def parse_options() -> argparse.Namespace:
    """Read the command line; ``size`` is the model's `Shape`."""
    parser = make_parser(__doc__)
    parser.set_defaults(threads=1)
    _llava.add_options(parser)
    add = parser.add_argument
    add("--layers", type=int, help="instead of the shape's")
    add("--hidden", type=int, default=1024, help="hidden size, unless a large shape has its own")
    add("--prompt", type=int, default=640, help="prompt length")
    add("--tokens", type=int, default=24, help="generated tokens")
    add("--repeats", type=int, default=5, help="rounds")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parse(parser)
    if options.prompt <= N_IMAGE + N_QUESTION:
        parser.error(f"--prompt: image and question already take {N_IMAGE + N_QUESTION} columns")
    given = {"layers": options.layers} if options.layers else {}
    given |= {"hidden": options.hidden} if options.shape == "small" else {}
    options.size = replace(SHAPES[options.shape], **given)
    return options


def main() -> None:
    """Measure and print."""
    options = parse_options()
    wanted = {PLAIN, *options.methods}
    every = [c for c in conditions(options.size) if c.name in wanted]
    console = Console(width=max(110, Console().width))
    machine = describe(options)
    # Drawn only between measurements: a thread that refreshes it would disturb them.
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=options.repeats + 1)
        model = build(options)
        runners = [Runner(model, condition) for condition in every]
        times = measure(runners, options, lambda: progress.update(task, advance=1, refresh=True))
    shape = options.size
    console.print(
        f"{shape.layers} layers, hidden {shape.hidden}, heads of {shape.head_dim}, "
        f"{model.dtype}; {machine}, transformers {transformers.__version__}",
        highlight=False,
    )
    console.print(tell(times, options))
    console.print(
        "Medians, ± half the distance between quartiles. "
        f"Target: two threads <= {TARGET:.2f} of two on the plain model."
    )


if __name__ == "__main__":
    main()
