"""Scorers: frozen, JSON-able specs that load what they need when they are asked to."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from PIL import Image

from regaze.evals.errors import first_line
from regaze.evals.scoring.statistics import ratio
from regaze.evals.task import Counts, Metrics, Sums
from regaze.hooks.checks import unknown

Images = Sequence[Image.Image]
Score = Callable[[Images, Sequence[str], Images], list[Counts]]
"""From pictures, their prompts and the pictures to compare with: counts of each picture."""
IMAGES = "images"
"""The count that is 1 for every picture, so that sums divided by it are means."""

_REGISTRY: dict[str, type[Spec]] = {}
_T = TypeVar("_T", bound="type[Spec]")


@dataclass(frozen=True)
class Spec(ABC):
    """The base of scorers of single pictures and of sets. Fields are settings.

    Attributes:
        name: As the command line knows it.
        summary: The measured quality, in one line.
        paper: The paper or code that it comes from.
        directions: For each metric +1 if higher is better, -1 if lower is, 0 if neither.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    directions: ClassVar[Mapping[str, int]]

    @property
    def label(self) -> str:
        """Short text such as ``clip:prefix=A photo depicts``, which `parse` reads."""
        changed = [
            f"{f.name}={value}"
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != f.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")

    def identity(self, *packages: str, **weights: str) -> dict[str, Any]:
        """The scorer's settings, versions of the libraries it uses, and hashes of its weights."""
        versions = {name: version(name) for name in packages}
        return {"name": self.name, **dataclasses.asdict(self), "packages": versions, **weights}


@dataclass(frozen=True)
class Ready:
    """A scorer with all that it needs in memory.

    Attributes:
        score: Scores a batch.
        identity: All that the numbers depend on, JSON-able: settings, weights, versions.
    """

    score: Score
    identity: Mapping[str, Any]


class Scorer(Spec):
    """Base of all scorers of single pictures.

    A scorer gives counts per picture, which can be added up, and metrics from their sums; so a
    bootstrap over prompts treats a share of objects like a mean.

    Attributes:
        headline: Metrics that stand in short tables; none: all.
        absolute: Metrics that are no shares.
        compares: True if it compares with other pictures: those of ``--references``, or else the
            unedited pipeline's.
        strips: True if a clip's frames side by side are a picture to it.
    """

    headline: ClassVar[tuple[str, ...]] = ()
    absolute: ClassVar[tuple[str, ...]] = ()
    compares: ClassVar[bool] = False
    strips: ClassVar[bool] = False

    @abstractmethod
    def load(self, device: str) -> Ready:
        """Load libraries and weights.

        Args:
            device: The device to compute on.

        Raises:
            ImportError: A library is missing; the message says what to install.
            ValueError: Weights are missing or don't fit; the message says what to give.
            OSError: A file can't be read.
        """

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse, before anything is painted, prompts that can't be scored; here none.

        Raises:
            ValueError: One can't.
            OSError: A file can't be read.
        """
        return

    def metrics(self, sums: Sums) -> Metrics:
        """Metrics from summed counts, elementwise; here the mean over the pictures."""
        return {name: ratio(sums[name], sums[IMAGES]) for name in self.directions}

    def told(self, counts: Counts) -> str:
        """A picture's score in words."""
        return ", ".join(f"{name.replace('_', ' ')} {counts[name]:.4g}" for name in self.directions)

    def value(self, counts: Counts) -> float:
        """The number of one picture that a search maximises: here the first metric."""
        return float(counts[next(iter(self.directions))])


def register(cls: _T) -> _T:
    """Make a scorer known by its name."""
    _REGISTRY[cls.name] = cls
    return cls


def names() -> list[str]:
    """Names of all scorers, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Spec]:
    """Look a scorer up by name.

    Raises:
        ValueError: No such scorer; the message names the nearest ones.
    """
    if name not in _REGISTRY:
        raise ValueError(unknown("scorer", name, _REGISTRY))
    return _REGISTRY[name]


def parse(text: str) -> Spec:
    """Read ``clip`` or ``clip:model=DIR,prefix=A photo depicts``.

    Values that are numbers become numbers; anything else is text.

    Raises:
        ValueError: Unknown name or field, or a missing ``=``.
    """
    name, _, rest = text.strip().partition(":")
    cls = get(name)
    known = [f.name for f in dataclasses.fields(cls)]
    fields: dict[str, Any] = {}
    # A comma only ends a value where a further field begins, so paths and prefixes may hold one.
    for part in re.split(r",(?=\s*\w+=)", rest) if rest else ():
        field, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: expected field=value, got {part!r}")
        if field.strip() not in known:
            raise ValueError(unknown(f"field of {name}", field.strip(), known))
        try:
            fields[field.strip()] = json.loads(value)
        except ValueError:
            fields[field.strip()] = value.strip()
    return cls(**fields)


def require(module: str, package: str) -> ModuleType:
    """Import a library that only one scorer needs.

    Raises:
        ImportError: It isn't installed or doesn't load; the message says what to do.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a half-installed library raises
        try:
            found = f"{package} {version(package)} doesn't load ({first_line(error)})"
            advice = "reinstall it, and torchvision, with builds that fit this torch"
        except PackageNotFoundError:
            found, advice = f"{package} isn't installed", f"pip install {package}"
        raise ImportError(f"{found}: {advice}") from error


def file_sha256(path: Path) -> str:
    """Hash of a file of weights.

    Raises:
        OSError: It can't be read.
    """
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def check_lengths(images: Images, prompts: Sequence[str]) -> None:
    """Check that there is one prompt for each picture.

    Raises:
        ValueError: There isn't.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} pictures but {len(prompts)} prompts: give one prompt per picture"
        )
