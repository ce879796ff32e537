"""The benchmarks by name, and how a task is built from what a command line can say."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regaze.evals.benchmarks import pope_labels
from regaze.evals.benchmarks.amber import Amber
from regaze.evals.benchmarks.amber_generative import AmberGenerative
from regaze.evals.benchmarks.aokvqa import AOkvqa
from regaze.evals.benchmarks.building import (
    TEXT_FILES,
    Build,
    chair,
    is_hub_id,
    mmvp,
    opope,
    pope,
    textvqa,
    whole,
    with_images,
    with_images_under,
)
from regaze.evals.benchmarks.chair_synonyms import SynonymFinder
from regaze.evals.benchmarks.hallusionbench import HallusionBench
from regaze.evals.benchmarks.mme import Mme
from regaze.evals.benchmarks.mmhal import MmHal
from regaze.evals.benchmarks.mmvp import Mmvp
from regaze.evals.benchmarks.naturalbench import NaturalBench
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.questions import ProfiledQuestions
from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.benchmarks.vstar import VStar
from regaze.evals.benchmarks.worlds import TESTS, world_of
from regaze.evals.task import QuestionTask
from regaze.hooks.checks import unknown
from regaze.interventions import plugins

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a task comes from, in JSON-able words, so that it can be built again later.

    Attributes:
        benchmark: A name in `BENCHMARKS`.
        data: Question or annotation files, a folder of them or a Hub id; empty for the sandbox.
        images: Folder of the images.
        words: CHAIR's word table.
        synonyms: A table of one's own in its place, for classes of one's own.
        relabel: Corrected labels for POPE: a file or a folder of files.
        split: Of a built-in world, see `worlds`.
        n_images: Images to ask about, where they are drawn.
        seed: Of that draw.
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
        """What a reader calls the task."""
        if self.data:
            return self.name
        return f"{self.name} on {TESTS.get(self.split, f'{self.split} scenes')}"

    def title_of(self, task: QuestionTask) -> str:
        """What a reader calls one of its tasks."""
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


@dataclass(frozen=True)
class Benchmark:
    """What there is to know of a benchmark before any data are read.

    Attributes:
        title: Its name as its authors write it.
        summary: What it asks.
        paper: Where it is described.
        profiles: The usual ones; the first decides what is asked.
        build: Makes the task from files or from the sandbox's scenes.
        hub: Makes it from a copy on the Hub, where there is one.
        sandbox: The usual profiles on the sandbox's scenes; empty: there is nothing to ask there.
        draws: Whether files leave it open which images to ask about.
    """

    title: str
    summary: str
    paper: str
    profiles: Sequence[str]
    build: Build
    hub: type[ProfiledQuestions] | None = None
    sandbox: Sequence[str] = ()
    draws: bool = False


def names() -> list[str]:
    """Names of all benchmarks: shipped, registered, and offered by installed packages."""
    return list(dict.fromkeys([*BENCHMARKS, *_ADDED, *plugins.offered(plugins.BENCHMARKS)]))


def find(name: str) -> Benchmark:
    """Look a benchmark up by name.

    Raises:
        ValueError: There is none; the message names the nearest.
        ImportError: An installed package offers it, but it can't be loaded.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name not in _ADDED:
        point = plugins.offered(plugins.BENCHMARKS).get(name)
        if point is None:
            raise ValueError(unknown("benchmark", name, names()))
        offered = plugins.load(point)
        if not isinstance(offered, Benchmark):
            raise ImportError(f"{point.value} is no Benchmark but a {type(offered).__name__}")
        _ADDED.setdefault(name, offered)  # Its module may have registered it.
    return _ADDED[name]


def describe(name: str) -> tuple[str, str]:
    """What a benchmark asks and where it is described.

    Raises:
        ValueError: There is none; the message names the nearest.
        ImportError: An installed package offers it, but it can't be loaded.
    """
    known = find(name)
    return known.summary, known.paper


def register(name: str, benchmark: Benchmark) -> None:
    """Make a benchmark known by its name to `find` and the command line.

    Raises:
        ValueError: Another one has that name.
    """
    if name in BENCHMARKS or name in _ADDED:
        raise ValueError(f"a benchmark named {name!r} is already registered")
    _ADDED[name] = benchmark


_ADDED: dict[str, Benchmark] = {}

BENCHMARKS: Mapping[str, Benchmark] = {
    "pope": Benchmark(
        "POPE",
        "yes/no questions about present and absent objects",
        "arXiv 2305.10355",
        ("official",),
        pope,
        hub=Pope,
        sandbox=("official",),
    ),
    "chair": Benchmark(
        "CHAIR",
        "objects in captions that are not in the image",
        "arXiv 1809.02156",
        ("official", "opera"),
        chair,
        sandbox=("exact",),
        draws=True,
    ),
    "opope": Benchmark(
        "OPOPE",
        "POPE's objects, looked up in captions",
        "arXiv 2403.00425",
        ("official",),
        opope,
        draws=True,
    ),
    "amber": Benchmark(
        "AMBER",
        "yes/no questions about existence, attributes and relations",
        "arXiv 2311.07397",
        ("yesno", "strict"),
        with_images(Amber.from_files),
    ),
    "amber-generative": Benchmark(
        "AMBER generative",
        "objects in descriptions that are not in the image",
        "arXiv 2311.07397",
        ("official",),
        with_images_under(AmberGenerative.from_files),
    ),
    "mme": Benchmark(
        "MME",
        "two yes/no questions about each image, 14 subsets",
        "arXiv 2306.13394",
        ("lmms",),
        whole(Mme.from_files),
        hub=Mme,
    ),
    "mmvp": Benchmark(
        "MMVP",
        "a or b about pairs of images that CLIP takes for one",
        "arXiv 2401.06209",
        ("letter", "letter/original"),
        mmvp,
        hub=Mmvp,
    ),
    "hallusionbench": Benchmark(
        "HallusionBench",
        "illusions and edited figures, yes/no, some without image",
        "arXiv 2310.14566",
        ("yesno",),
        with_images(HallusionBench.from_files),
        hub=HallusionBench,
    ),
    "naturalbench": Benchmark(
        "NaturalBench",
        "two questions about two images, with opposite answers",
        "arXiv 2410.14669",
        ("official",),
        with_images(NaturalBench.from_files),
        hub=NaturalBench,
    ),
    "textvqa": Benchmark(
        "TextVQA",
        "questions whose answer is written in the image",
        "arXiv 1904.08920",
        ("official",),
        textvqa,
        hub=TextVqa,
    ),
    "aokvqa": Benchmark(
        "A-OKVQA",
        "questions that need knowledge, multiple choice or direct",
        "arXiv 2206.01718",
        ("letter",),
        with_images(AOkvqa.from_files),
        hub=AOkvqa,
    ),
    "vstar": Benchmark(
        "V*Bench",
        "small things in large images, multiple choice",
        "arXiv 2312.14135",
        ("letter",),
        whole(VStar.from_files),
        hub=VStar,
    ),
    "mmhal": Benchmark(
        "MMHal-Bench",
        "open questions, to be rated by a judge of your own",
        "arXiv 2309.14525",
        ("official",),
        with_images_under(MmHal.from_files),
    ),
}
