"""The benchmarks by name, and how a task is built from what a command line can say."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from regaze.evals.chair import Chair, phrase_extractor
from regaze.evals.pope import Pope
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES, SPLITS
from regaze.evals.sandbox.tasks import chair_truth, load_image, pope_records
from regaze.evals.sandbox.text import CAPTION_PROMPT
from regaze.evals.task import Task
from regaze.interventions.base import unknown

_log = logging.getLogger(__name__)

TEST_SPLITS: Mapping[str, str] = {
    "test": "prior-free scenes",
    "test-prior": "scenes that follow the prior",
}
"""The sandbox's test splits: a method that only removes the prior shines on the first alone."""


@dataclass(frozen=True)
class Source:
    """Where a task comes from, in JSON-able words, so that it can be built again later.

    Attributes:
        benchmark: A name in `BENCHMARKS`.
        data: Question or annotation files, a folder of them or a Hub id; empty for the sandbox.
        images: Folder of the images.
        words: CHAIR's word table.
        split: Of the sandbox.
        n_images: Images to ask about, where they are drawn.
        seed: Of that draw.
        profiles: Scoring rules; empty for the benchmark's usual ones.
    """

    benchmark: str
    data: tuple[str, ...] = ()
    images: str | None = None
    words: str | None = None
    split: str = "test"
    n_images: int | None = None
    seed: int = 0
    profiles: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Source:
        """The inverse of `to_dict`."""
        tuples = {key: tuple(fields[key]) for key in ("data", "profiles")}
        return cls(**{**fields, **tuples})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return asdict(self)

    @property
    def title(self) -> str:
        """What a reader calls the task."""
        name = self.benchmark.upper()
        if self.data:
            return name
        return f"{name} on {TEST_SPLITS.get(self.split, f'{self.split} scenes')}"

    def tasks(self) -> list[Task]:
        """The task under each profile; the first one is for asking, all are for scoring.

        Raises:
            ValueError: Unknown benchmark, split or profile, or data that don't fit.
            OSError: A file is missing or can't be read.
        """
        benchmark = find(self.benchmark)
        if not self.data and self.split not in SPLITS:
            raise ValueError(unknown("split of the sandbox", self.split, SPLITS))
        first, *others = self.profiles or benchmark.profiles(self)
        tasks = [benchmark.build(self, first)]
        for profile in others:
            try:
                tasks.append(benchmark.under(tasks[0], profile))
            except OSError as error:
                if self.profiles:
                    raise
                _log.warning("%s/%s is left out: %s", self.benchmark, profile, error)
        return tasks


@dataclass(frozen=True)
class Benchmark:
    """What there is to know of a benchmark before any data are read."""

    summary: str
    paper: str
    profiles: Callable[[Source], Sequence[str]]
    build: Callable[[Source, str], Task]
    under: Callable[[Any, str], Task]


def find(name: str) -> Benchmark:
    """Look a benchmark up by name.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    if name not in BENCHMARKS:
        raise ValueError(unknown("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


def _pope(source: Source, profile: str) -> Pope:
    if not source.data:
        records = pope_records(source.split, source.n_images or 200, source.seed)
        return Pope.from_records(records, load_image, profile=profile)
    if source.n_images is not None:
        raise ValueError(
            "--n-images draws from the sandbox or for CHAIR; POPE's files take --limit"
        )
    if re.fullmatch(r"[\w-]+/[\w.-]+(?<!\.json)(?<!\.jsonl)", source.data[0]) and not (
        source.images or Path(source.data[0]).exists()
    ):
        return Pope.from_hub(source.data[0], profile=profile)
    return Pope.from_files(_files(source, "*.json*"), _images(source), profile=profile)


def _chair(source: Source, profile: str) -> Chair:
    if not source.data:
        if profile != "exact":
            raise ValueError("the sandbox's ground truth has only the profile 'exact'")
        return Chair.from_truth(
            chair_truth(source.split, source.n_images or 300),
            phrase_extractor(COLOURS, SHAPES),
            load_image,
            prompt=CAPTION_PROMPT,
        )
    return Chair.from_coco(
        [p for p in _files(source, "*.json") if p.name.startswith(("instances", "captions"))],
        _images(source),
        words=source.words,
        profile=profile,
        count=source.n_images or 500,
        seed=source.seed,
    )


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


def _images(source: Source) -> Path:
    if source.images is None:
        raise ValueError(f"--data {source.data[0]} needs --images, the folder of its images")
    if not Path(source.images).is_dir():
        raise ValueError(f"--images: there is no folder {source.images}")
    return Path(source.images)


BENCHMARKS: Mapping[str, Benchmark] = {
    "pope": Benchmark(
        "yes/no questions about present and absent objects",
        "arXiv 2305.10355",
        lambda source: ("official",),
        _pope,
        lambda task, profile: replace(task, profile=profile),
    ),
    "chair": Benchmark(
        "objects in captions that are not in the image",
        "arXiv 1809.02156",
        lambda source: ("official", "opera") if source.data else ("exact",),
        _chair,
        lambda task, profile: task.under(profile),
    ),
}
