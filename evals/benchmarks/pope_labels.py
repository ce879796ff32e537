"""RePOPE: POPE's answers scored with corrected labels.

arXiv:2504.15707; YanNeu/RePOPE@bcf22e5 ``annotations/coco_repope_*.json``. The files are POPE's
with the same ids, some labels changed and the ambiguous questions left out; so one run of POPE's
questions gives the scores of both. (Its own script reads "yes" or "no" as substrings; here answers
are read under POPE's profiles.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from regaze.evals.benchmarks.pope import Pope
from regaze.evals.task import Item

NAME, TITLE = "repope", "RePOPE"
_MARK = "repope"


def read_labels(path: Path) -> Mapping[str, Item]:
    """Corrected questions by id.

    Args:
        path: A file, or a folder of which the files with "repope" in their names are read, or all
            if none is named so.

    Raises:
        ValueError: No file, or files of something else.
        OSError: A file can't be read.
    """
    files = [path]
    if path.is_dir():
        every = sorted(path.glob("*.json*"))
        files = [file for file in every if _MARK in file.name] or every
    if not files:
        raise ValueError(f"--relabel: {path} holds no *.json file")
    if not path.exists():
        raise ValueError(f"--relabel: there is no file or folder {path}")
    # Images are never opened through it.
    return {item.id: item for item in Pope.from_files(files, path.parent).items}


def relabelled(task: Pope, labels: Mapping[str, Item]) -> Pope:
    """The questions that have a corrected label, with that label.

    Args:
        task: POPE, under any profile.
        labels: As `read_labels` gives them.

    Raises:
        ValueError: They are about other questions; or none is among the task's.
    """
    items = []
    for item in task.items:
        corrected = labels.get(item.id)
        if corrected is None:
            continue
        if item.image != corrected.image or not item.prompt.startswith(corrected.prompt):
            raise ValueError(
                f"--relabel: question {item.id} is {item.prompt!r} about {item.image} in the data, "
                f"but {corrected.prompt!r} about {corrected.image} in the labels"
            )
        items.append(replace(item, target=corrected.target))
    if not items:
        raise ValueError(
            f"--relabel: none of its questions (the first is {next(iter(labels))}) is among the "
            f"data's (the first is {task.items[0].id})"
        )
    if strange := labels.keys() - {item.id for item in task.items}:
        raise ValueError(
            f"--relabel: {len(strange)} of its questions are not in the data, e.g. {min(strange)}: "
            "give the labels of the files that are asked"
        )
    return replace(task, items=items, name=NAME)
