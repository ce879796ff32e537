"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regaze.evals.benchmarks.amber import Amber
from regaze.evals.benchmarks.amber_generative import AmberGenerative
from regaze.evals.benchmarks.aokvqa import AOkvqa
from regaze.evals.benchmarks.building import (
    Build,
    chair,
    mmvp,
    opope,
    pope,
    textvqa,
    whole,
    with_images,
    with_images_under,
)
from regaze.evals.benchmarks.hallusionbench import HallusionBench
from regaze.evals.benchmarks.mme import Mme
from regaze.evals.benchmarks.mmhal import MmHal
from regaze.evals.benchmarks.mmvp import Mmvp
from regaze.evals.benchmarks.naturalbench import NaturalBench
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.questions import ProfiledQuestions
from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.benchmarks.vstar import VStar
from regaze.hooks.checks import unknown
from regaze.interventions import plugins


@dataclass(frozen=True)
class Benchmark:
    """All that is known of a benchmark before any data are read.

    Attributes:
        title: The benchmark's name as its authors write it.
        summary: The kind of questions, in a line.
        paper: The paper that describes it.
        profiles: The usual ones; the first decides what is asked.
        build: Makes the task from files or from the sandbox's scenes.
        hub: Makes it from a copy on the Hub, where there is one.
        sandbox: The usual profiles on the sandbox's scenes; empty: there is nothing to ask there.
        draws: True if files leave it open which images to ask about.
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
    """A benchmark's summary and its paper.

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
