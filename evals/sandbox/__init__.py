"""The embedded world: drawn scenes with exact ground truth and small models trained on them."""

from __future__ import annotations

from pathlib import Path

from regaze.evals.sandbox.shipped import shipped

__all__ = ["MODELS", "is_sandbox", "model_path"]

MODELS = ("sandbox", "sandbox-plain")
"""Names of the shipped vision-language models: with planted attention sinks, and without."""


def is_sandbox(name: str) -> bool:
    """True if this is the name of a shipped model."""
    return name in MODELS


def model_path(name: str) -> Path:
    """Folder of a shipped model, for ``from_pretrained``.

    Raises:
        ValueError: No shipped model has that name.
    """
    return shipped("sandbox model", name, MODELS)
