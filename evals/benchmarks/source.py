"""A task's origin, in what a command line can say."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regaze.evals.benchmarks import pope_labels
from regaze.evals.benchmarks.building import TEXT_FILES, is_hub_id
from regaze.evals.benchmarks.chair_synonyms import SynonymFinder
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.registry import BENCHMARKS, Benchmark, find
from regaze.evals.benchmarks.worlds import TESTS, world_of
from regaze.evals.task import QuestionTask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A task's origin, in JSON-able words, so that it can be built again later.

    Attributes:
        benchmark: A name in `regaze.evals.benchmarks.registry.BENCHMARKS`.
        data: Question or annotation files, a folder of them or a Hub id; empty for the sandbox.
        images: Folder of the images.
        words: CHAIR's word table.
        synonyms: A table of one's own in its place, for classes of one's own.
        relabel: Corrected labels for POPE: a file or a folder of files.
        split: The split of a built-in world, see `worlds`.
        n_images: Images to ask about, where they are drawn.
        seed: Seed of that draw.
        profiles: Scoring rules; empty for the benchmark's usual ones.
    """

    benchmark: str
    data: tuple[str, ...] = ()
    images: str | None = None
    words: str | None = None
    synonyms: str | None = None
    relabel: str | None = None
    split: str = "test"
    n_images: int | None = None
    seed: int = 0
    profiles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return asdict(self)

    def noted(self) -> dict[str, Any]:
        """The fields and the SHA-256 of the files of questions, by name.

        Files of the same name go round in several versions, e.g. POPE's for A-OKVQA.

        Raises:
            OSError: A file can't be read.
        """
        named = map(Path, (*self.data, *filter(None, (self.synonyms, self.relabel))))
        files = [
            file
            for path in named
            for file in (sorted(path.iterdir()) if path.is_dir() else [path])
            if file.suffix in TEXT_FILES and file.is_file()
        ]
        sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return {**self.to_dict(), "sha256": sums}

    @property
    def name(self) -> str:
        """The benchmark's name as its authors write it."""
        return find(self.benchmark).title

    @property
    def title(self) -> str:
        """The task's title for readers."""
        if self.data:
            return self.name
        return f"{self.name} on {TESTS.get(self.split, f'{self.split} scenes')}"

    def title_of(self, task: QuestionTask) -> str:
        """The title of one of its tasks for readers."""
        return pope_labels.TITLE if task.name == pope_labels.NAME else self.title

    def tasks(self) -> list[QuestionTask]:
        """The task under each profile; the first one is for asking, all are for scoring.

        Raises:
            ValueError: Unknown benchmark, split or profile, or data that don't fit.
            ImportError: A package that the benchmark needs isn't installed.
            OSError: A file is missing or can't be read.
        """
        self.check()
        benchmark = find(self.benchmark)
        usual = benchmark.profiles if self.data else benchmark.sandbox
        first, *others = self.profiles or ((SynonymFinder.profile,) if self.synonyms else usual)
        tasks = [self._build(benchmark, first)]
        for profile in others:
            try:
                tasks.append(tasks[0].under(profile))
            except OSError as error:
                if self.profiles:
                    raise
                _log.warning("%s/%s is left out: %s", self.benchmark, profile, error)
        if self.relabel:
            labels = pope_labels.read_labels(Path(self.relabel))
            tasks += [
                pope_labels.relabelled(task, labels) for task in tasks if isinstance(task, Pope)
            ]
        return tasks

    def check(self) -> None:
        """Refuse what doesn't go together, before a file is read.

        Raises:
            ValueError: Unknown benchmark or split, no data where there are no scenes, or files and
                numbers that nothing would be made of.
        """
        benchmark = find(self.benchmark)
        if not self.data and not benchmark.sandbox:
            there = ", ".join(name for name, each in BENCHMARKS.items() if each.sandbox)
            raise ValueError(
                f"--data is missing: where are the files of {self.name}? (The sandbox has "
                f"scenes for {there} only)"
            )
        if not self.data:
            world_of(self.split)
        if self.n_images is not None and self.data and not benchmark.draws:
            raise ValueError(
                f"--n-images draws images for the sandbox, CHAIR and OPOPE; the questions of "
                f"{self.name} take --limit"
            )
        for name in ("images", "words", "synonyms", "relabel"):
            if getattr(self, name) is not None and not self.data:
                raise ValueError(
                    f"--{name} goes with --data: the sandbox's scenes come with all they need"
                )
        for name, of in (("words", "chair"), ("synonyms", "chair"), ("relabel", "pope")):
            given = getattr(self, name)
            if given and self.benchmark != of:
                raise ValueError(f"--{name} {given} belongs to {find(of).title}, not {self.name}")
        if self.words and self.synonyms:
            raise ValueError("--synonyms stands in place of --words: give one of them")

    def _build(self, benchmark: Benchmark, profile: str) -> QuestionTask:
        if self.images is None and len(self.data) == 1 and is_hub_id(self.data[0]):
            if benchmark.hub is None:
                there = ", ".join(name for name, each in BENCHMARKS.items() if each.hub)
                raise ValueError(
                    f"--data: there is no file or folder {self.data[0]}, and {self.name} isn't "
                    f"read from the Hub, only {there}"
                )
            return benchmark.hub.from_hub(self.data[0], profile=profile)
        return benchmark.build(self, profile)
