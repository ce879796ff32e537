"""Processes that share a directory: the right to write, the work left, and each one's part.

This is all that every run has in common, whatever its parts are: `regaze.evals.runs.driver` does
conditions by it, `regaze.evals.pictures.head_hunter` the heads of each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from regaze.evals.runs import files, store
from regaze.evals.runs.distributed import World
from regaze.evals.runs.progress import Progress

_T = TypeVar("_T")


@contextmanager
def alone(
    out: Path,
    configs: Mapping[Path, Mapping[str, Any]],
    prepare: Callable[[], None],
    world: World,
) -> Iterator[None]:
    """Keep other runs out of a directory, check and prepare it, and meet the other processes.

    Args:
        out: The directory.
        configs: The configuration behind the contents of each of its folders.
        prepare: The step that the first process takes before all begin.
        world: This process among the others.

    Raises:
        ValueError: A folder holds answers made with other settings.
        OSError: The directory can't be written, or another process writes to it.
    """
    with files.locked(out) if world.first else nullcontext():
        for folder, config in configs.items():
            store.check_config(folder, config)
        if world.first:
            files.remove_parts(out)
            prepare()
        world.wait()
        yield


def read_together(world: World, read: Callable[[], _T]) -> _T:
    """Read the disk while nobody writes: all must share out the same rest."""
    world.wait()
    found = read()
    world.wait()
    return found


def share_out(
    label: str,
    left: Mapping[_T, int],
    done: int,
    world: World,
    progress: Progress,
) -> tuple[Sequence[_T], Callable[[_T], None]]:
    """This process's part of the units left, and a function to call when one of them is done.

    Args:
        label: The name of the work, for progress.
        left: Units in order, the same for all processes, and how many items each holds.
        done: Items that were done before.
        world: This process among the others.
        progress: Told at once, and whenever a unit is done.
    """
    mine = list(left)[world.rank :: world.size]
    total = done + sum(left[unit] for unit in mine)
    progress(label, done, total)

    def finished(unit: _T) -> None:
        nonlocal done
        done += left[unit]
        progress(label, done, total)

    return mine, finished


def by_first(world: World, gather: Callable[[], None]) -> None:
    """Let the first process put together what all have written, while the others wait."""
    world.wait()
    if world.first:
        gather()
    world.wait()
