"""Open a run of a benchmark's questions again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from regaze.evals.benchmarks.source import Source
from regaze.evals.runs import store
from regaze.evals.runs.results import load
from regaze.evals.scoring.scored import Opened


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a run of questions and build its task again.

    Args:
        folder: The run's directory.
        profiles: Other scoring rules for the stored answers; default: those of the run.

    Raises:
        ValueError: It doesn't say what was asked, or its data have changed.
        OSError: Its data are gone.
    """
    path = folder / store.RUN
    fields = store.read_run(folder)["source"]
    if fields is None:
        raise ValueError(f"{path} doesn't say where its task came from: score it in Python")
    known = {key: value for key, value in fields.items() if key != "sha256"}
    source = store.restored(folder, Source, known)
    tasks = source.tasks()
    result = load(tasks[0], folder)
    if profiles:
        # The same answers may be scored with several truths.
        truths = [task for task in tasks if task.profile == tasks[0].profile]
        tasks = [task.under(profile) for task in truths for profile in profiles]
    titles = [source.title_of(task) for task in tasks]
    return Opened(tasks, titles, result, partial(load, result.task))
