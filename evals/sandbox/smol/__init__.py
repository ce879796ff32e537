"""A small real language model that sees: assembled on the user's machine from two packages."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from regaze.evals.sandbox.known import check_known
from regaze.evals.sandbox.smol import packages

__all__ = ["MODELS", "cache", "check_name", "delta_path", "is_smol", "model_path", "place"]

MODELS = ("smol", "smol-twin")
"""Names of the assembled models: trained with a co-occurrence prior, and without."""

_DELTAS = {"smol": "delta.safetensors", "smol-twin": "delta-twin.safetensors"}
# Counted up whenever the same parts and delta give other files.
_ASSEMBLY = 1


def is_smol(name: str) -> bool:
    """True if this is the name of an assembled model."""
    return name in MODELS


def check_name(name: str) -> None:
    """Check that a name is an assembled model's.

    Raises:
        ValueError: It isn't; the message names the nearest.
    """
    check_known("model to fetch", name, MODELS)


def cache() -> Path:
    """The folder of parts and assembled models: ``$XDG_CACHE_HOME/regaze/smol``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze" / "smol"


def delta_path(name: str) -> Path:
    """The shipped weights that turn the parts into a model, one of `MODELS`."""
    return Path(__file__).parent / _DELTAS[name]


def place(name: str) -> Path:
    """Folder of an assembled model, there or not; what it is made of is in the folder's name.

    Raises:
        ValueError: This regaze has no weights for it.
    """
    delta = delta_path(name)
    if not delta.is_file():
        raise ValueError(f"this regaze comes without the weights of {name} ({delta.name})")
    total = hashlib.sha256(
        f"{_ASSEMBLY} {packages.LANGUAGE.sha256} {packages.VISION.sha256} ".encode()
    )
    total.update(delta.read_bytes())
    return cache() / f"{name}-{total.hexdigest()[:12]}"


def model_path(name: str) -> Path:
    """Folder of an assembled model, for ``from_pretrained``.

    Raises:
        ValueError: It has not been fetched; the message says what to type.
    """
    folder = place(name)
    if not folder.is_dir():
        raise ValueError(
            f"{name} isn't here yet: type `regaze sandbox fetch {name}` once, with a connection "
            f"(it downloads {(packages.LANGUAGE.size + packages.VISION.size) // 1_000_000} MB)"
        )
    return folder
