"""Shared by the benchmarks: options, clocks, taking turns, ratios, peak memory, tables."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from rich import box
from rich.table import Table

P = ParamSpec("P")
T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


def make_parser(what: str | None) -> argparse.ArgumentParser:
    """A command line with the options of every benchmark: ``--threads --device --clock``.

    Args:
        what: Description of what is measured, mostly the module's docstring.
    """
    parser = argparse.ArgumentParser(
        description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2, help="torch threads")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    add("--give-back", action="store_true", help="leave it to malloc to give freed memory back")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line; set the number of threads and what becomes of freed memory."""
    options = parser.parse_args()
    if not options.give_back:
        _keep_memory()
    if options.device == "cuda" and options.clock == "cpu":
        parser.error("--clock cpu doesn't see what a GPU does; use wall")
    torch.set_num_threads(options.threads)
    return options


def seconds(work: Callable[[], object], options: argparse.Namespace) -> float:
    """Time some work in seconds, on the device and by the clock of the command line."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    _wait_for(options.device)
    start = clock()
    work()
    _wait_for(options.device)
    return clock() - start


def in_turn(all_of_them: Sequence[T], number: int) -> list[T]:
    """The order of a round: whoever comes after a slow one finds cold caches, so it rotates."""
    first = number % len(all_of_them)
    return [*all_of_them[first:], *all_of_them[:first]]


def side_by_side(
    steps: Mapping[Name, Callable[[], float | None]],
    rounds: int,
    *,
    warm_up: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[Name, list[float]]:
    """Let conditions take turns, so that noise and warmth of the machine reach all alike.

    Args:
        steps: By condition what it does in one round; returns its `seconds`, or None if it sits
            this round and all later ones out.
        rounds: Number of rounds that count.
        warm_up: Rounds before these.
        tick: Called after each round, e.g. to move a progress bar.

    Returns:
        Seconds of each round, by condition.
    """
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for number in range(-warm_up, rounds):
        for name in in_turn(list(steps), number):
            taken = steps[name]()
            if taken is not None and number >= 0:
                times[name].append(taken)
        tick()
    return times


@dataclass(frozen=True)
class Ratio:
    """Ratio to a reference.

    Attributes:
        median: Over rounds.
        spread: Half the distance between the quartiles.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, mine: Sequence[float], reference: Sequence[float]) -> Ratio | None:
        """Compare round by round, as far as both went; None if either has none."""
        ratios = [a / b for a, b in zip(mine, reference, strict=False)]
        if len(ratios) < 2:
            return cls(ratios[0], 0.0) if ratios else None
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, (high - low) / 2)

    def __str__(self) -> str:
        return f"{self.median:.3f} ±{self.spread:.2f}"


def peak_memory(work: Callable[[], object], device: str) -> int | None:
    """Bytes that some work takes at its peak, above what is there before.

    On CUDA as the allocator counts them; elsewhere the growth of the resident set, so this belongs
    `in_fresh_process`, after the same work on something small: kernels allocate their own workspace
    once. None where the system doesn't tell, or memory runs out.
    """
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS", reset_peak=True)
    try:
        work()
    except torch.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    return None if before is None or peak is None else peak - before


def in_fresh_process(
    threads: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """The result of a function run in a process of its own, with this many torch threads."""
    # Freed tensors go back to the system at once, so that the peak is that of live ones.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    heavy = ("torch", "transformers", "diffusers", "regaze")
    context.set_forkserver_preload([name for name in heavy if name in sys.modules])
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as fresh:
        return fresh.submit(function, *args, **kwargs).result()


def make_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; the first column is for names, the others are for numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def describe(options: argparse.Namespace) -> str:
    """The machine, how it is used, and torch's version."""
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        load = f"load average {os.getloadavg()[0]:.1f}"
        machine = f"{platform.machine()} CPU with {os.cpu_count()} cores, {load}"
        machine += f", {options.threads} torch threads, {options.clock} clock"
    return f"{machine}; torch {torch.__version__}"


def _keep_memory() -> None:
    """Have glibc keep what is freed, which by default it gives back now and then.

    Then the next one to ask for memory takes a page fault for each 4 KB, up to 60 ms of a prefill
    of 570 ms. Whose turn that is, the plain model's or another's, is chance.
    """
    with contextlib.suppress(OSError, AttributeError):  # Another libc.
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _resident(key: str, reset_peak: bool = False) -> int | None:
    try:
        if reset_peak:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except (OSError, AttributeError):
        return None
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))
