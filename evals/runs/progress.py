"""Progress bars of runs, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

Progress = Callable[[str, int, int], None]
"""Called with a condition's label, items done and items in all."""


def quiet(label: str, done: int, total: int) -> None:
    """Show nothing."""


class _Label(progress.ProgressColumn):
    """The label of a bar, cut where the terminal is narrow, so that its numbers stay whole."""

    def get_table_column(self) -> Column:
        """The column of the table of bars: the one that gives way."""
        return Column(no_wrap=False)

    def render(self, task: progress.Task) -> Text:
        """Give the text as it is: specs hold lists in brackets, which would be read as markup."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


@contextmanager
def bars(*, shown: bool = True) -> Iterator[Callable[[str], Progress]]:
    """Show a bar for every task and condition; gives a task's callback by the task's title.

    Args:
        shown: True if the bars are shown; one of several processes shows its own.
    """
    columns = (
        _Label(),
        progress.BarColumn(bar_width=16),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=not shown) as display:

        def follow(title: str) -> Progress:
            rows: dict[str, progress.TaskID] = {}

            def step(label: str, done: int, total: int) -> None:
                if label not in rows:
                    rows[label] = display.add_task(f"{title}: {label}", total=total)
                display.update(rows[label], completed=done)

            return step

        yield follow
