"""How each benchmark's task is built from files, from the Hub or from the sandbox's scenes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regaze.evals.benchmarks import aokvqa, hallusionbench, mme, mmvp, textvqa, vstar
from regaze.evals.benchmarks.amber import Amber
from regaze.evals.benchmarks.amber_generative import AmberGenerative
from regaze.evals.benchmarks.aokvqa import AOkvqa
from regaze.evals.benchmarks.chair import Chair, phrase_extractor
from regaze.evals.benchmarks.hallusionbench import HallusionBench
from regaze.evals.benchmarks.hub import Hub, read_hub
from regaze.evals.benchmarks.mme import Mme
from regaze.evals.benchmarks.mmhal import MmHal
from regaze.evals.benchmarks.mmvp import Mmvp
from regaze.evals.benchmarks.opope import Opope
from regaze.evals.benchmarks.pope import Pope
from regaze.evals.benchmarks.textvqa import TextVqa
from regaze.evals.benchmarks.vstar import VStar
from regaze.evals.sandbox.drawing import COLOURS
from regaze.evals.sandbox.scenes import SHAPES
from regaze.evals.sandbox.tasks import chair_truth, load_image, pope_records
from regaze.evals.sandbox.text import CAPTION_PROMPT
from regaze.evals.task import Task

if TYPE_CHECKING:
    from regaze.evals.benchmarks.registry import Source

Build = Callable[["Source", str], Task]

TEXT_FILES = frozenset({".json", ".jsonl", ".csv", ".txt"})
"""How files of questions end; a Hub id doesn't."""


def build(source: Source, profile: str) -> Task:
    """The task of a source under a profile.

    Raises:
        ValueError: Unknown profile, or data that don't fit.
        ImportError: A package that the benchmark needs isn't installed.
        OSError: A file is missing or can't be read.
    """
    if source.images is None and len(source.data) == 1 and _is_hub_id(source.data[0]):
        if source.benchmark not in _ON_HUB:
            raise ValueError(
                f"--data: there is no file or folder {source.data[0]}, and {source.name} isn't "
                f"read from the Hub, only {', '.join(_ON_HUB)}"
            )
        return _ON_HUB[source.benchmark](source, profile)
    return _IN_FILES[source.benchmark](source, profile)


def _pope(source: Source, profile: str) -> Task:
    if not source.data:
        records = pope_records(source.split, source.n_images or 200, source.seed)
        return Pope.from_records(records, load_image, profile=profile)
    return Pope.from_files(_files(source, "*.json*"), _images(source), profile=profile)


def _chair(source: Source, profile: str) -> Task:
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


def _amber_generative(source: Source, profile: str) -> Task:
    return AmberGenerative.from_files(_one(source), _images(source)).under(profile)


def _mmvp(source: Source, profile: str) -> Task:
    return Mmvp.from_files(_one(source), source.images and _images(source), profile=profile)


def _opope(source: Source, profile: str) -> Task:
    count = source.n_images or 500
    task = Opope.from_files(_one(source), _images(source), count=count, seed=source.seed)
    return task.under(profile)


def _textvqa(source: Source, profile: str) -> Task:
    paths = sorted(_files(source, "*.json*"), key=lambda path: path.suffix == ".jsonl")
    if len(paths) > 2 or (len(paths) == 2 and paths[1].suffix != ".jsonl"):
        raise ValueError(
            "--data takes TextVQA_0.5.1_val.json and, for hints by OCR, LLaVA's prompts (.jsonl), "
            f"not {', '.join(map(str, paths))}"
        )
    data, *prompts = paths
    written = prompts[0] if prompts else None
    return TextVqa.from_files(data, _images(source), prompts=written, profile=profile)


def _mmhal(source: Source, profile: str) -> Task:
    return MmHal.from_files(_one(source), _images(source)).under(profile)


def _amber(source: Source, profile: str) -> Task:
    return Amber.from_files(_one(source), _images(source), profile=profile)


def _mme(source: Source, profile: str) -> Task:
    return Mme.from_files(_one(source), profile=profile)


def _hallusionbench(source: Source, profile: str) -> Task:
    return HallusionBench.from_files(_one(source), _images(source), profile=profile)


def _aokvqa(source: Source, profile: str) -> Task:
    return AOkvqa.from_files(_one(source), _images(source), profile=profile)


def _vstar(source: Source, profile: str) -> Task:
    return VStar.from_files(_one(source), profile=profile)


def _hub(make: Callable[..., Task], hub: Hub) -> Build:
    """Builds a task from the rows of a copy of a data set, which ``--data`` names."""

    def build(source: Source, profile: str) -> Task:
        rows, load = read_hub(replace(hub, id=source.data[0]))
        return make(rows, load, profile=profile)

    return build


def _is_hub_id(name: str) -> bool:
    """Whether a name can only be a data set's: two words, no file, and not named like one."""
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


_IN_FILES: Mapping[str, Build] = {
    "pope": _pope,
    "chair": _chair,
    "opope": _opope,
    "amber": _amber,
    "amber-generative": _amber_generative,
    "mme": _mme,
    "mmvp": _mmvp,
    "hallusionbench": _hallusionbench,
    "textvqa": _textvqa,
    "aokvqa": _aokvqa,
    "vstar": _vstar,
    "mmhal": _mmhal,
}
_ON_HUB: Mapping[str, Build] = {
    "pope": lambda source, profile: Pope.from_hub(source.data[0], profile=profile),
    "mme": _hub(Mme.from_records, Hub(mme.HUB_ID, mme.HUB_SPLITS, key=mme.image_key)),
    "mmvp": _hub(Mmvp.from_records, Hub(mmvp.HUB_ID, mmvp.HUB_SPLITS, key=mmvp.image_key)),
    "hallusionbench": _hub(
        HallusionBench.from_records,
        Hub(hallusionbench.HUB_ID, hallusionbench.HUB_SPLITS, key=hallusionbench.image_key),
    ),
    "textvqa": _hub(TextVqa.from_records, textvqa.HUB),
    "aokvqa": _hub(AOkvqa.from_records, aokvqa.HUB),
    "vstar": _hub(VStar.from_records, vstar.HUB),
}
