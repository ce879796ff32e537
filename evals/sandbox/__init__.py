"""The embedded world: drawn scenes with exact ground truth and small models trained on them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

__all__ = ["MODELS", "is_sandbox", "model_path"]

MODELS = ("sandbox", "sandbox-plain")
"""Names of the shipped vision-language models: with planted attention sinks, and without."""


def is_sandbox(name: str) -> bool:
    """Whether this is the name of a shipped model."""
    return name in MODELS


def model_path(name: str) -> Path:
    """Folder of a shipped model, for ``from_pretrained``.

    Raises:
        ValueError: No shipped model has that name.
    """
    if not is_sandbox(name):
        near = get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown sandbox model {name!r}: it must be one of {', '.join(MODELS)}; "
            f"nearest is {near!r}"
        )
    return Path(__file__).parent / "models" / name
