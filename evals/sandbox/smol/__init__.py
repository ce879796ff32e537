"""A small real language model that sees: assembled on the user's machine from two packages."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MODELS", "cache", "delta_path"]

MODELS = ("smol", "smol-twin")
"""Names of the assembled models: trained with a co-occurrence prior, and without."""

_DELTAS = {"smol": "delta.safetensors", "smol-twin": "delta-twin.safetensors"}


def cache() -> Path:
    """Where parts and assembled models lie: ``$XDG_CACHE_HOME/regaze/smol``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regaze" / "smol"


def delta_path(name: str) -> Path:
    """The shipped weights that turn the parts into a model, one of `MODELS`."""
    return Path(__file__).parent / _DELTAS[name]
