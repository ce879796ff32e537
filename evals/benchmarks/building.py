"""Build tasks from files or from the sandbox's scenes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from regaze.evals.benchmarks.chair import Chair
from regaze.evals.benchmarks.mmvp import Mmvp
from regaze.evals.benchmarks.opope import Opope
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.benchmarks.worlds import world_of
from regaze.evals.task import QuestionTask


class Source(Protocol):
    """The part of `regaze.evals.benchmarks.source.Source` that builders read."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def data(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def images(self) -> str | None: ...  # noqa: D102
    @property
    def words(self) -> str | None: ...  # noqa: D102
    @property
    def synonyms(self) -> str | None: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def n_images(self) -> int | None: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


Build = Callable[[Source, str], QuestionTask]
"""Makes the task of a source under a profile."""

TEXT_FILES = frozenset({".json", ".jsonl", ".csv", ".txt"})
"""Suffixes of files of questions; a Hub id has none of them."""


def with_images(make: Callable[..., QuestionTask]) -> Build:
    """Builds a task from the file or folder of questions and the folder of images."""
    return lambda source, profile: make(_one(source), _images(source), profile=profile)


def with_images_under(make: Callable[..., QuestionTask]) -> Build:
    """As `with_images`, where a profile changes nothing but how answers are read."""
    return lambda source, profile: make(_one(source), _images(source)).under(profile)


def whole(make: Callable[..., QuestionTask]) -> Build:
    """Builds a task from a folder that holds the images too."""
    return lambda source, profile: make(_one(source), profile=profile)


def pope(source: Source, profile: str) -> QuestionTask:
    """POPE's files, or scenes."""
    if not source.data:
        world = world_of(source.split)
        records = world.pope_records(source.split, source.n_images or 200, source.seed)
        return Pope.from_records(records, world.load_image, profile=profile)
    return Pope.from_files(_files(source, "*.json*"), _images(source), profile=profile)


def chair(source: Source, profile: str) -> QuestionTask:
    """COCO's annotations and CHAIR's words, or scenes."""
    if not source.data:
        if profile != "exact":
            raise ValueError("the sandbox's ground truth has only the profile 'exact'")
        world = world_of(source.split)
        return Chair.from_truth(
            world.chair_truth(source.split, source.n_images or 300),
            world.mentioned,
            world.load_image,
            prompt=world.prompt,
        )
    return Chair.from_coco(
        [*_files(source, "instances*.json"), *_captions(source)],
        _images(source),
        words=source.words,
        synonyms=source.synonyms,
        profile=profile,
        count=source.n_images,
        seed=source.seed,
    )


def mmvp(source: Source, profile: str) -> QuestionTask:
    """MMVP's folder, which mostly holds the images too."""
    return Mmvp.from_files(_one(source), source.images and _images(source), profile=profile)


def opope(source: Source, profile: str) -> QuestionTask:
    """POPE's list of objects."""
    count = source.n_images or 500
    task = Opope.from_files(_one(source), _images(source), count=count, seed=source.seed)
    return task.under(profile)


def textvqa(source: Source, profile: str) -> QuestionTask:
    """TextVQA's file and, for hints by OCR, LLaVA's prompts."""
    paths = sorted(_files(source, "*.json*"), key=lambda path: path.suffix == ".jsonl")
    if len(paths) > 2 or (len(paths) == 2 and paths[1].suffix != ".jsonl"):
        raise ValueError(
            "--data takes TextVQA_0.5.1_val.json and, for hints by OCR, LLaVA's prompts (.jsonl), "
            f"not {', '.join(map(str, paths))}"
        )
    data, *prompts = paths
    written = prompts[0] if prompts else None
    return TextVqa.from_files(data, _images(source), prompts=written, profile=profile)


def is_hub_id(name: str) -> bool:
    """True if a name can only be a data set's: two words, no file, and not named like one."""
    path = Path(name)
    fits = re.fullmatch(r"[\w-]+/[\w.-]+", name) is not None
    return fits and path.suffix not in TEXT_FILES and not path.exists()


def _files(source: Source, pattern: str) -> list[Path]:
    """The files named, and those of the folders named."""
    files = []
    for path in map(Path, source.data):
        if not path.exists():
            raise ValueError(f"--data: there is no file or folder {path}")
        found = sorted(path.glob(pattern)) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"--data: {path} holds no {pattern} file")
        files += found
    return files


def _captions(source: Source) -> list[Path]:
    """Files of captions in the folders named; files named are all among `_files`."""
    folders = (path for path in map(Path, source.data) if path.is_dir())
    return [file for path in folders for file in sorted(path.glob("captions*.json"))]


def _one(source: Source) -> Path:
    """The file or folder named."""
    title = source.name
    if len(source.data) != 1:
        raise ValueError(f"--data takes one file or folder of {title}, not {len(source.data)}")
    path = Path(source.data[0])
    if not path.exists():
        raise ValueError(f"--data: there is no file or folder {path}")
    return path


def _images(source: Source) -> Path:
    if source.images is None:
        raise ValueError(f"--data {source.data[0]} needs --images, the folder of its images")
    if not Path(source.images).is_dir():
        raise ValueError(f"--images: there is no folder {source.images}")
    return Path(source.images)
