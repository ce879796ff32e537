"""Copies of the containers that tensors are given in."""

from __future__ import annotations

from typing import Any


def copy_containers(value: Any) -> Any:
    """Copies of nested lists and dicts, which some denoisers empty while they run."""
    if isinstance(value, list):
        return [copy_containers(v) for v in value]
    if isinstance(value, dict):
        return {k: copy_containers(v) for k, v in value.items()}
    return value
