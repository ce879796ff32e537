"""Studies that are stored or painted already: each is kept as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regaze.evals.pictures.studies import Study
from regaze.evals.runs import files

DONE = "done.json"
"""The file with a study's results, in its folder of ``--out``."""

Studies = dict[str, dict[str, Any]]
"""Results of studies, by the study's name."""


def of_methods(study: Study, methods: Sequence[str] | None) -> Study:
    """A study with some of its methods; with all of them for None."""
    kept = {name: specs for name, specs in study.grids.items() if name in (methods or [name])}
    return replace(study, grids=kept)


def beside(study: Study, methods: Sequence[str] | None, done: Mapping[str, Any] | None) -> Study:
    """A study with the methods asked for and those that are done already."""
    return of_methods(study, methods and [*methods, *(done["best"] if done else ())])


def done_studies(out: Path, studies: Sequence[Study]) -> Studies:
    """The results of those studies that a directory holds."""
    paths = {study.name: out / study.name / DONE for study in studies}
    return {name: files.read_json(path) for name, path in paths.items() if path.exists()}


def check_whole(
    studies: Sequence[Study], todo: Sequence[Study], done: Studies, kept: Studies, stored: Path
) -> None:
    """Check that no study loses methods, before anything is painted.

    Args:
        studies: All of today.
        todo: Those to paint, with the methods that they will have.
        done: Those that ``--out`` holds.
        kept: The stored ones.
        stored: The file that ``kept`` is from.

    Raises:
        ValueError: One would; the message names the methods.
    """
    new = {name: [*one["best"]] for name, one in done.items()}
    new |= {study.name: [*study.grids] for study in todo}
    for study in studies:
        if study.name in new and study.name in kept:
            found = new[study.name]
            # A method that the study has no more may go.
            before = [one for one in study.grids if one in kept[study.name]["best"]]
            if lost := [one for one in before if one not in found]:
                raise ValueError(
                    f"{study.name} would lose {', '.join(lost)}, which {stored} holds: a study is "
                    "painted as a whole, so first paint these too, with "
                    f"--only {study.name} --methods {' '.join([*found, *lost])}"
                )


def stored_studies(path: Path, made: Mapping[str, Any], studies: Sequence[Study]) -> Studies:
    """The data that a page was made from.

    Args:
        path: The file.
        made: The sizes and the dtype of today's studies.
        studies: All of today.

    Raises:
        ValueError: The pictures had other sizes, or a study isn't one of today's.
        OSError: The file can't be read.
    """
    stored = files.read_json(path)
    for key, value in made.items():
        if stored[key] != value:
            raise ValueError(f"{path} is of {key} {stored[key]}, not {value}: nothing to keep")
    today = {study.name: study for study in studies}
    found: Studies = {one["name"]: one for one in stored["studies"]}
    for name, one in found.items():
        fields = ("model", "subset", "guidance")
        if name not in today or any(one[key] != getattr(today[name], key) for key in fields):
            raise ValueError(f"{path} holds {name}, of a {one['model']} that isn't studied so now")
    return found
