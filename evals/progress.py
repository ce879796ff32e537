"""Progress bars of runs, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from regaze.evals.runner import Progress


@contextmanager
def bars() -> Iterator[Callable[[str], Progress]]:
    """Show a bar for every task and condition; gives a task's callback by the task's title."""
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:

        def follow(title: str) -> Progress:
            rows: dict[str, progress.TaskID] = {}

            def step(label: str, done: int, total: int) -> None:
                if label not in rows:
                    rows[label] = shown.add_task(f"{title}: {label}", total=total)
                shown.update(rows[label], completed=done)

            return step

        yield follow
