"""Read runs again, whatever they are of, and score what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from regaze.evals.runs import store
from regaze.evals.scoring.scored import Opened, Scored

Open = Callable[[Path, Sequence[str]], Opened]
"""Opens a run's directory, under the profiles given or else its own."""

_KINDS: Mapping[str, str] = {
    "images": "regaze.evals.pictures.stored",
    "video": "regaze.evals.clips.study",
    "edits": "regaze.evals.edits.study",
    "places": "regaze.evals.places.study",
}
"""Modules whose ``open_run`` reads runs of a kind; loaded when one is opened."""
_QUESTIONS = "regaze.evals.benchmarks.answered"


def reopen(out: Path, profiles: Sequence[str] = (), seed: int = 0) -> list[Scored]:
    """Score the runs in a directory again, finished or not, without a model.

    Args:
        out: A run's directory or one above several.
        profiles: Other scoring rules for stored answers to questions; default: those of the run.
        seed: For the bootstrap.

    Raises:
        ValueError: There is no run, or its data have changed.
        OSError: Its data are gone.
    """
    return [open_run(path.parent, profiles).scored(seed) for path in run_files(out)]


def open_run(folder: Path, profiles: Sequence[str] = ()) -> Opened:
    """Read a run and build its task again.

    Args:
        folder: The run's directory.
        profiles: Other scoring rules for stored answers to questions; default: those of the run.

    Raises:
        ValueError: It doesn't say what it is of, its data have changed, or a file is damaged.
        OSError: Its data are gone.
    """
    source = store.read_run(folder)["source"] or {}
    module = import_module(_KINDS.get(str(source.get("benchmark")), _QUESTIONS))
    return cast(Open, module.open_run)(folder, profiles)


def run_files(out: Path) -> list[Path]:
    """The files that mark run directories, in a directory and below.

    Raises:
        ValueError: There is none.
        OSError: There is no such directory.
    """
    out.stat()
    found = sorted(out.rglob(store.RUN))
    if not found:
        raise ValueError(f"{out} holds no run: no {store.RUN} in it or below")
    return found
