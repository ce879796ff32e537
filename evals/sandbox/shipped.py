"""Folders of the models that are shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regaze.evals.sandbox.known import check_known


def shipped(kind: str, name: str, names: Sequence[str]) -> Path:
    """Folder of a shipped model.

    Args:
        kind: The kind of model, for the message.
        name: Name of the model.
        names: Names of all models of that kind.

    Raises:
        ValueError: None of them has that name; the message names the nearest.
    """
    check_known(kind, name, names)
    return Path(__file__).parent / "models" / name
